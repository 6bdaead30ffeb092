//! Published ports on a host that lets in nothing by itself: they are closed to the outside until the
//! administrator's own rules consent.

use crate::nft::{Expr, Field, Table};

/// The mark that says yes, given to a connection's first packet in `rswarm-user`.
pub const CONSENT: u32 = 0x7273_7779;

/// Closes published ports to all but this host, its containers, and what the administrator's rules marked.
pub fn require_consent(table: &mut Table) {
    let opens = |rule: &Vec<Expr>| *rule == [Expr::Translated, Expr::Accept];
    for chain in &mut table.chains {
        let Some(at) = chain.rules.iter().position(opens) else { continue };
        let from_containers = vec![Expr::InSet(&[Field::Iifname], "bridges"), Expr::Translated, Expr::Accept];
        let consented = vec![Expr::PacketMarked(CONSENT), Expr::Translated, Expr::Accept];
        chain.rules.splice(at..=at, [from_containers, consented]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rswarm_base::ipam::Family;

    use super::*;

    #[test]
    fn what_was_open_needs_a_mark() {
        let (bridges, none) = (BTreeMap::new(), BTreeMap::new());
        let open = crate::rules::host(Family::V4, "t", &bridges, [].iter(), &none, &none);
        let mut closed = open.clone();
        require_consent(&mut closed);
        let rules =
            |table: &Table| table.chains.iter().flat_map(|chain| chain.rules.clone()).collect::<Vec<_>>();
        let (open, closed) = (rules(&open), rules(&closed));
        assert_eq!(closed.len(), open.len() + 1);
        assert!(open.contains(&vec![Expr::Translated, Expr::Accept]));
        assert!(!closed.contains(&vec![Expr::Translated, Expr::Accept]));
    }
}
