//! What the kernel has, against what we gave it. Anybody with the privilege can change our tables; here that
//! is noticed, and put right in the same transaction as any other change.
//!
//! Elements are compared with what was wanted. Rules are not: the kernel writes them out in its own way. They
//! are read once after each change of ours, and must stay as they were then. The kernel numbers all changes in
//! a namespace ([`generation`]), so that nothing is read while nobody changed anything.

use std::io;

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainMessage, GenMessage, NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetMessage,
};
use netlink_sys::Socket;
use rswarm_base::ipam::Family;

use super::wire::{commit, elements, open, protocol, push};
use super::{Change, Table, change};

/// Changes of others, one right after the other, that are waited out before we go on without a shape.
const TRIES: usize = 3;
/// The same, for a list without which we cannot go on: a firewall that is loaded makes many changes in a row.
const LISTS: usize = 100;

/// Message numbers (`enum nf_tables_msg_types`).
const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;
const NEW_SET: u8 = 9;
const NEW_GENERATION: u8 = 15;
/// Number and size of the generation's attribute.
const GENERATION: u16 = 1;
/// The attributes of each message that make up a table's shape (`enum nft_chain_attributes` and so on): no
/// handles, counters or users.
const CHAIN: [u16; 4] = [CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE];
const RULE: [u16; 2] = [RULE_CHAIN, RULE_EXPRESSIONS];
const SET: [u16; 6] = [2, 3, 4, 5, 6, 7];
/// The attribute that names the table, in all of them.
const TABLE: u16 = 1;

const HEADER_BYTES: usize = 16;
/// The family and version before the attributes.
const FAMILY_BYTES: usize = 4;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The bits of an attribute's number that are flags.
const NLA_FLAGS: u16 = 0xc000;

/// A table, as the kernel has had it since we changed it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    table: Table,
    /// Its chains, rules and sets in the kernel's words; `None` when others' changes kept us from reading it.
    shape: Option<Vec<Vec<u8>>>,
    /// The last change in the namespace after which it was as it should be.
    generation: u32,
}

impl Held {
    /// What it should be.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }
}

/// How a table was brought to its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Settled {
    /// It was so already.
    Unchanged,
    /// We changed it.
    Changed,
    /// Somebody else had changed it, and it was put right.
    Repaired,
}

/// A table on its way.
struct Part {
    wanted: Table,
    todo: Change,
    /// The shape, where it stays what it was.
    shape: Option<Vec<Vec<u8>>>,
    was_damaged: bool,
}

impl Part {
    /// Compares what we left with what is wanted, and first with what there is, if anybody changed anything.
    fn begin(before: Option<Held>, wanted: Table, now: u32) -> io::Result<Part> {
        let Some(held) = before else {
            return Ok(Part { wanted, todo: Change::Replace, shape: None, was_damaged: false });
        };
        let found = match held.generation == now {
            true => None,
            false => Some(read_back(&held)?),
        };
        let was_damaged = found.as_ref().is_some_and(|found| found.as_ref() != Some(&held.table));
        let believed = found.unwrap_or(Some(held.table));
        let todo = change(believed.as_ref(), &wanted);
        let keeps_shape = match &todo {
            Change::None => true,
            Change::Extend { chains, .. } => chains.is_empty(),
            Change::Replace => false,
        };
        Ok(Part { wanted, todo, shape: held.shape.filter(|_| keeps_shape), was_damaged })
    }

    fn settled(&self) -> Settled {
        match self.todo {
            Change::None => Settled::Unchanged,
            _ if self.was_damaged => Settled::Repaired,
            _ => Settled::Changed,
        }
    }

    /// Says that nothing is known of what there is.
    fn replace(&mut self) {
        (self.todo, self.shape) = (Change::Replace, None);
    }
}

/// Brings the calling thread's namespace to `wanted`, from what we left there: nothing, or tables that somebody
/// else may have changed since. All go over in one transaction; of several, the worst is told.
pub fn settle(mut before: Vec<Held>, wanted: Vec<Table>) -> io::Result<(Vec<Held>, Settled)> {
    let start = generation()?;
    let mut parts = Vec::new();
    for table in wanted {
        let same = |held: &Held| (held.table.family, &held.table.name) == (table.family, &table.name);
        let held = before.iter().position(same).map(|at| before.swap_remove(at));
        parts.push(Part::begin(held, table, start)?);
    }
    let settled = parts.iter().map(Part::settled).max().unwrap_or(Settled::Unchanged);
    if settled == Settled::Unchanged {
        return Ok((held(parts, start, start), settled));
    }
    if let Err(error) = send(&parts) {
        // Most likely somebody changed what we read, after we did. The whole of it needs nothing to be there.
        if parts.iter().all(|part| part.todo == Change::Replace) {
            return Err(error);
        }
        parts.iter_mut().for_each(Part::replace);
        send(&parts)?;
    }
    learn(parts, start).map(|held| (held, settled))
}

fn send(parts: &[Part]) -> io::Result<()> {
    commit(parts.iter().map(|part| (&part.wanted, &part.todo)))
}

/// Reads how the kernel writes out the tables that it just got whole, after the change `start`. If somebody else
/// changed something meanwhile, they are made again: what is read must be what we gave.
fn learn(parts: Vec<Part>, start: u32) -> io::Result<Vec<Held>> {
    let mut before = start;
    for _ in 0..TRIES {
        let unknown = |part: &&Part| part.shape.is_none();
        let read = |part: &Part| shape(part.wanted.family, &part.wanted.name);
        let shapes: io::Result<Vec<_>> = parts.iter().filter(unknown).map(read).collect();
        let now = generation()?;
        match shapes {
            // Between the two numbers there was our change alone.
            Ok(shapes) if now == before.wrapping_add(1) => {
                // Of those that kept their shape nothing is known since the first try.
                let kept = if before == start { now } else { start };
                let mut held = held(parts, now, kept);
                let learned = held.iter_mut().filter(|held| held.shape.is_none());
                learned.zip(shapes).for_each(|(held, shape)| held.shape = shape);
                return Ok(held);
            }
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            Ok(_) | Err(_) => {}
        }
        if !parts.iter().any(|part| part.shape.is_none()) {
            break;
        }
        before = now;
        let again = parts.iter().filter(unknown).map(|part| (&part.wanted, &Change::Replace));
        commit(again)?;
    }
    Ok(held(parts, start, start))
}

/// Tables as they are from now on, with the last change after which those made whole, and those that kept their
/// shape, were as they should be.
fn held(parts: Vec<Part>, whole: u32, kept: u32) -> Vec<Held> {
    let one = |part: Part| {
        let generation = if part.shape.is_none() { whole } else { kept };
        Held { table: part.wanted, shape: part.shape, generation }
    };
    parts.into_iter().map(one).collect()
}

/// The table with the elements that it has now; `None` when more is not as it was, or it is gone.
fn read_back(held: &Held) -> io::Result<Option<Table>> {
    let mut table = held.table.clone();
    match shape(table.family, &table.name) {
        Ok(found) if found.is_some() && found == held.shape => {}
        // It changes while we look, so it is made anew.
        Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
        Ok(_) | Err(_) => return Ok(None),
    }
    for map in &mut table.maps {
        map.elements = match elements(table.family, &table.name, map.name) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            found => found?,
        };
    }
    Ok(Some(table))
}

/// Whether the kernel has all tables as they should be; nothing is changed.
pub fn are_held(tables: &[Held]) -> io::Result<bool> {
    let now = generation()?;
    for held in tables {
        if held.generation != now && read_back(held)?.as_ref() != Some(&held.table) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A chain that packets come to by themselves, of anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// `ip`, `ip6`, `inet`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Where packets come to it.
    pub hook: Hooked,
    /// Whether it drops or rejects what it does not accept.
    pub drops: bool,
}

/// Where packets come to a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hooked {
    /// On their way into this host.
    Input,
    /// On their way through it.
    Forward,
    /// Anywhere else.
    Elsewhere,
}

/// The base chains in the calling thread's namespace that IP packets come to.
pub fn base_chains() -> io::Result<Vec<BaseChain>> {
    undisturbed(list_base_chains)
}

/// Lists again what others changed while it was listed.
pub fn undisturbed<T>(mut list: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..LISTS {
        match list() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            listed => return listed,
        }
    }
    list()
}

fn list_base_chains() -> io::Result<Vec<BaseChain>> {
    let socket = open()?;
    let mut chains = Vec::new();
    let families = [
        (NetfilterProtoFamily::IPv4, "ip"),
        (NetfilterProtoFamily::IPv6, "ip6"),
        (NetfilterProtoFamily::Inet, "inet"),
    ];
    for (number, family) in families {
        let request = NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() });
        ask(&socket, number, request, NLM_F_DUMP, |kind, attributes| {
            if kind == NEW_CHAIN {
                chains.extend(base_chain(family, attributes));
            }
        })?;
        for chain in
            chains.iter_mut().filter(|chain| chain.family == family && chain.hook != Hooked::Elsewhere)
        {
            chain.drops = chain.drops || ends_with_refusal(&socket, number, chain)?;
        }
    }
    Ok(chains)
}

/// Whether a chain's last rule refuses all that is left, which is as good as a policy.
fn ends_with_refusal(socket: &Socket, family: NetfilterProtoFamily, chain: &BaseChain) -> io::Result<bool> {
    let attributes =
        vec![RuleAttribute::Table(chain.table.clone()), RuleAttribute::Chain(chain.chain.clone())];
    let mut refuses = false;
    let request = NfTablesMessage::GetRule(RuleMessage { attributes });
    ask(socket, family, request, NLM_F_DUMP, |kind, attributes| {
        let find = |wanted| parse(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let is_here =
            find(RULE_CHAIN).and_then(|name| name.strip_suffix(b"\0")) == Some(chain.chain.as_bytes());
        if kind == NEW_RULE && is_here {
            refuses = find(RULE_EXPRESSIONS).is_some_and(refuses_all);
        }
    })?;
    Ok(refuses)
}

/// Whether a rule has no condition, and ends in a refusal.
fn refuses_all(expressions: &[u8]) -> bool {
    let mut refuses = false;
    for (_, expression) in parse(expressions) {
        let find = |wanted| parse(expression).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
        let content = find(EXPRESSION_CONTENT).unwrap_or_default();
        match find(EXPRESSION_NAME).and_then(|name| name.strip_suffix(b"\0")).unwrap_or_default() {
            b"counter" | b"log" => {}
            b"reject" => refuses = true,
            b"immediate" => refuses = is_drop(content),
            // What iptables calls REJECT.
            b"target" => refuses = content.windows(6).any(|bytes| bytes == b"REJECT"),
            _ => return false,
        }
    }
    refuses
}

/// Whether an immediate value is the verdict to drop.
fn is_drop(content: &[u8]) -> bool {
    let inner = |bytes: &[u8], wanted| {
        parse(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value.to_vec()).unwrap_or_default()
    };
    inner(&inner(&inner(content, IMMEDIATE_DATA), DATA_VERDICT), VERDICT_CODE) == [0; 4]
}

/// Numbers of a rule's attributes, of an expression's, and of what is in one.
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_CONTENT: u16 = 2;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;

/// Numbers of a chain's attributes, and of those of its hook.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
/// `NF_INET_LOCAL_IN` and `NF_INET_FORWARD`.
const LOCAL_IN: [u8; 4] = [0, 0, 0, 1];
const FORWARD: [u8; 4] = [0, 0, 0, 2];

fn base_chain(family: &'static str, attributes: &[u8]) -> Option<BaseChain> {
    let find = |wanted| parse(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let text = |wanted| Some(String::from_utf8_lossy(find(wanted)?.strip_suffix(b"\0")?).into_owned());
    let hook = parse(find(CHAIN_HOOK)?).find(|(kind, _)| *kind == HOOK_NUMBER)?.1;
    let is_filter = find(CHAIN_TYPE) == Some(b"filter\0");
    let hook = match hook {
        hook if hook == LOCAL_IN && is_filter => Hooked::Input,
        hook if hook == FORWARD && is_filter => Hooked::Forward,
        _ => Hooked::Elsewhere,
    };
    let drops = find(CHAIN_POLICY) == Some(&[0, 0, 0, 0]);
    Some(BaseChain { family, table: text(TABLE)?, chain: text(CHAIN_NAME)?, hook, drops })
}

/// Whether there is a table of that name in the calling thread's namespace, with a chain of that name.
pub fn has_chain(family: Family, table: &str, chain: &str) -> io::Result<bool> {
    let name = [chain.as_bytes(), b"\0"].concat();
    let shape = undisturbed(|| shape(family, table))?.unwrap_or_default();
    Ok(shape.iter().any(|part| part[0] == NEW_CHAIN && part.windows(name.len()).any(|bytes| bytes == name)))
}

/// Whether there is a table of that name in the calling thread's namespace, with a map or set of that name.
pub fn has_map(family: Family, table: &str, map: &str) -> io::Result<bool> {
    let attributes = vec![SetAttribute::Table(table.to_owned()), SetAttribute::Name(map.to_owned())];
    let request = NfTablesMessage::GetSet(SetMessage { attributes });
    match ask(&open()?, protocol(family), request, 0, |_, _| {}) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        answered => answered.map(|()| true),
    }
}

/// The number of the last change in the calling thread's namespace, by anybody.
pub fn generation() -> io::Result<u32> {
    let socket = open()?;
    let mut number = None;
    let request = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
    ask(&socket, NetfilterProtoFamily::Unspec, request, 0, |kind, attributes| {
        if kind == NEW_GENERATION {
            let found = parse(attributes).find(|(kind, _)| *kind == GENERATION);
            number = found.and_then(|(_, value)| value.try_into().ok()).map(u32::from_be_bytes);
        }
    })?;
    number.ok_or_else(|| io::Error::other("the kernel does not number its rule sets"))
}

/// The chains, sets and rules of a table; `None` when it has none.
fn shape(family: Family, table: &str) -> io::Result<Option<Vec<Vec<u8>>>> {
    let socket = open()?;
    let mut parts = Vec::new();
    let name = || table.to_owned();
    let requests = [
        (NEW_CHAIN, &CHAIN[..], NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() })),
        (
            NEW_SET,
            &SET[..],
            NfTablesMessage::GetSet(SetMessage { attributes: vec![SetAttribute::Table(name())] }),
        ),
        (
            NEW_RULE,
            &RULE[..],
            NfTablesMessage::GetRule(RuleMessage { attributes: vec![RuleAttribute::Table(name())] }),
        ),
    ];
    for (wanted, kept, request) in requests {
        let from = parts.len();
        let listed = ask(&socket, protocol(family), request, NLM_F_DUMP, |kind, attributes| {
            let is_ours = |(kind, value): (u16, &[u8])| {
                kind == TABLE && value.strip_suffix(b"\0") == Some(table.as_bytes())
            };
            if kind == wanted && parse(attributes).any(is_ours) {
                parts.push(part(kind, kept, attributes));
            }
        });
        match listed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        }
        // The order of a chain's rules is theirs; chains and sets have none that matters.
        if wanted != NEW_RULE {
            parts[from..].sort_unstable();
        }
    }
    Ok(Some(parts).filter(|parts| !parts.is_empty()))
}

/// What of a message is part of the shape.
fn part(kind: u8, kept: &[u16], attributes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    for (kind, value) in parse(attributes).filter(|(kind, _)| kept.contains(kind)) {
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
    }
    bytes
}

/// Sends a request and hands over each message of the answer: its number and attributes.
fn ask(
    socket: &Socket,
    family: NetfilterProtoFamily,
    message: NfTablesMessage,
    flags: u16,
    mut each: impl FnMut(u8, &[u8]),
) -> io::Result<()> {
    let mut bytes = Vec::new();
    push(&mut bytes, 1, family, 0, message, flags);
    socket.send(&bytes, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while let Some(message) = next_message(&mut rest) {
            let (kind, flags) = (field(message, 4), field(message, 6));
            if flags & NLM_F_DUMP_INTR != 0 {
                return Err(io::Error::from(io::ErrorKind::Interrupted));
            }
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return error(message),
                _ => each(
                    kind.to_ne_bytes()[0],
                    message.get(HEADER_BYTES + FAMILY_BYTES..).unwrap_or_default(),
                ),
            }
        }
        if flags & NLM_F_DUMP == 0 {
            return Ok(());
        }
    }
}

/// Cuts off the first message.
fn next_message<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_ne_bytes(*rest.first_chunk::<4>()?) as usize;
    if length < HEADER_BYTES || length > rest.len() {
        return None;
    }
    let (message, _) = rest.split_at(length);
    *rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    Some(message)
}

fn field(message: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([message[at], message[at + 1]])
}

fn error(message: &[u8]) -> io::Result<()> {
    let number = message.get(HEADER_BYTES..HEADER_BYTES + 4).and_then(|bytes| bytes.try_into().ok());
    match number.map_or(0, i32::from_ne_bytes) {
        0 => Ok(()),
        number => Err(io::Error::from_raw_os_error(-number)),
    }
}

/// The attributes of a message: number and value.
fn parse(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if rest.len() < 4 {
            return None;
        }
        let length = usize::from(field(rest, 0));
        if length < 4 || length > rest.len() {
            return None;
        }
        let kind = field(rest, 2) & !NLA_FLAGS;
        let value = &rest[4..length];
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_end_where_the_message_does() {
        // Two attributes, one padded, and a third that claims more than there is.
        let bytes = [6, 0, 1, 0, 9, 9, 0, 0, 8, 0, 2, 0x80, 1, 2, 3, 4, 200, 0, 3, 0];
        let found: Vec<_> = parse(&bytes).collect();
        assert_eq!(found, [(1, &[9, 9][..]), (2, &[1, 2, 3, 4][..])]);
        assert_eq!(part(3, &[2], &bytes), [3, 2, 0, 1, 2, 3, 4]);
    }

    fn table(family: Family, protocols: &[u8]) -> Table {
        let map = crate::nft::Map {
            name: "seen",
            key: &[crate::nft::Field::Protocol],
            value: &[],
            elements: protocols.iter().map(|protocol| (vec![*protocol], Vec::new())).collect(),
        };
        Table { family, name: "held".into(), maps: vec![map], chains: Vec::new() }
    }

    fn both(protocols: &[u8]) -> Vec<Table> {
        Family::ALL.into_iter().map(|family| table(family, protocols)).collect()
    }

    fn found() -> Vec<Vec<u8>> {
        let listed = |family| elements(family, "held", "seen").expect("elements");
        Family::ALL.into_iter().map(|family| listed(family).into_keys().flatten().collect()).collect()
    }

    /// Runs in a namespace of its own.
    async fn alone(work: impl FnOnce() + Send + 'static) {
        let netns = crate::netns::Netns::create().await.expect("root is needed");
        netns.run(work).await.expect("work");
    }

    #[tokio::test]
    async fn both_families_change_in_one_transaction() {
        alone(|| {
            let (held, settled) = settle(Vec::new(), both(&[6, 17])).expect("made");
            assert_eq!(settled, Settled::Changed);
            let before = generation().expect("a number");
            let (held, settled) = settle(held, both(&[6, 132])).expect("changed");
            assert_eq!((settled, generation().expect("a number")), (Settled::Changed, before + 1));
            assert_eq!(found(), [[6, 132], [6, 132]]);
            assert!(are_held(&held).expect("looked"));
            let (_, settled) = settle(held, both(&[6, 132])).expect("the same");
            assert_eq!((settled, generation().expect("a number")), (Settled::Unchanged, before + 1));
        })
        .await;
    }

    #[tokio::test]
    async fn what_somebody_changes_after_it_was_read_fails_nothing() {
        alone(|| {
            let (mut held, _) = settle(Vec::new(), both(&[6, 17])).expect("made");
            // As if it came after the look: the number is that of his change.
            let removed = Change::Extend {
                chains: Vec::new(),
                elements: vec![crate::nft::ElementChange {
                    map: "seen",
                    delete: [(vec![17], Vec::new())].into(),
                    add: Default::default(),
                }],
            };
            commit([(&table(Family::V6, &[]), &removed)].into_iter()).expect("his change");
            let his = generation().expect("a number");
            held.iter_mut().for_each(|held| held.generation = his);
            let (held, _) = settle(held, both(&[6])).expect("changed all the same");
            assert_eq!(found(), [[6], [6]]);
            assert!(are_held(&held).expect("looked"));
        })
        .await;
    }
}
