//! Identifiers as Docker prints them: 64 hexadecimal digits for engine objects, 25 base-36 digits for
//! cluster objects. Pure code takes an [`IdGen`], so that one seed gives one history.

/// A source of identifiers, seeded by its owner (the leader from the system, a simulation from its seed).
#[derive(Debug, Clone)]
pub struct IdGen {
    state: [u64; 2],
}

impl IdGen {
    /// A generator whose whole output follows from `seed`.
    #[must_use]
    pub fn seeded(seed: u128) -> IdGen {
        let (high, low) = ((seed >> 64) as u64, seed as u64);
        IdGen { state: [scatter(high), scatter(low ^ high.rotate_left(32)) | 1] }
    }

    /// A generator seeded by the system's random source.
    #[must_use]
    pub fn from_system() -> IdGen {
        IdGen::seeded(u128::from_le_bytes(random_bytes()))
    }

    /// xorshift128+: fast and reproducible; identifiers need to be distinct, not secret.
    fn next(&mut self) -> u64 {
        let [mut x, y] = self.state;
        x ^= x << 23;
        let z = x ^ y ^ (x >> 17) ^ (y >> 26);
        self.state = [y, z];
        z.wrapping_add(y)
    }

    /// A cluster object's identifier: 25 digits of `0-9a-z`, as swarmkit's.
    pub fn cluster_id(&mut self) -> String {
        const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
        (0..25).map(|_| char::from(DIGITS[(self.next() % 36) as usize])).collect()
    }

    /// An engine object's identifier: 64 hexadecimal digits.
    pub fn engine_id(&mut self) -> String {
        (0..4).map(|_| format!("{:016x}", self.next())).collect()
    }

    /// Any 64-bit number, for choices that only need to be spread.
    pub fn number(&mut self) -> u64 {
        self.next()
    }
}

/// splitmix64's finaliser: a bijection, so that seeds which differ in one bit give different states.
fn scatter(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Bytes from the system's random source, fit for keys.
///
/// # Panics
/// When the kernel has no random source, which nothing can go on without.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel always has a random source");
    bytes
}

/// An engine object's identifier from the system's random source: 64 hexadecimal digits.
#[must_use]
pub fn engine_id() -> String {
    random_bytes::<32>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A cluster object's identifier from the system's random source: 25 base-36 digits.
#[must_use]
pub fn cluster_id() -> String {
    IdGen::from_system().cluster_id()
}

/// Whether the text has the form of a cluster object's identifier.
#[must_use]
pub fn is_cluster_id(text: &str) -> bool {
    text.len() == 25 && text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
}

/// The first twelve characters, as `docker ps` shows.
#[must_use]
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_history() {
        let (mut a, mut b) = (IdGen::seeded(7), IdGen::seeded(7));
        for _ in 0..100 {
            assert_eq!(a.cluster_id(), b.cluster_id());
        }
        for (one, other) in [(7, 8), (2, 3), (1 << 64, (1 << 64) | 1), (2 << 64, 3 << 64)] {
            assert_ne!(IdGen::seeded(one).cluster_id(), IdGen::seeded(other).cluster_id(), "{one} {other}");
        }
    }

    #[test]
    fn identifiers_have_dockers_lengths() {
        assert_eq!(engine_id().len(), 64);
        assert!(is_cluster_id(&cluster_id()) && !is_cluster_id(&engine_id()));
        assert_eq!(IdGen::seeded(1).engine_id().len(), 64);
    }
}
