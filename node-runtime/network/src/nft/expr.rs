//! [`Expr`]s as the kernel's expressions: a rule is a list of small steps over registers.

use std::net::IpAddr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta,
    MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

use rswarm_base::ipam::Family;

use super::{Expr, Field, interface, key, octets};

const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
/// Conntrack states, as `ct state` tests them.
const CT_ESTABLISHED_RELATED: u32 = 2 | 4;
const CT_NEW: u32 = 8;
/// Conntrack status: the destination was translated.
const IPS_DST_NAT: u32 = 0x20;
/// What a `ct` expression reads or writes (`enum nft_ct_keys`).
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
const CT_ZONE: u32 = 17;
/// Address type of a route to this host.
const RTN_LOCAL: u32 = 2;
/// Kinds of translation (`enum nft_nat_types`).
const SNAT: u32 = 0;
const DNAT: u32 = 1;

type Element = ListAttribute<ExpressionAttribute>;

/// The steps of one condition or action in a table of the family.
pub fn expressions(expr: &Expr, family: Family) -> Vec<Element> {
    let load = |field, to| load(field, family, to);
    let load_all = |fields| load_all(fields, family);
    let translate = |kind, port| translate(kind, family, port);
    match expr {
        Expr::Interface { field, equal, name } => {
            vec![load(*field, Register::Reg1), compare(*equal, interface(name).to_vec())]
        }
        Expr::Within { field, inside, network, prefix } => {
            vec![
                load(*field, Register::Reg1),
                mask_by(prefix_mask(*prefix, family)),
                compare(*inside, octets(*network)),
            ]
        }
        Expr::Protocol(number) => vec![load(Field::Protocol, Register::Reg1), compare(true, vec![*number])],
        Expr::Dport(port) => {
            vec![load(Field::Dport, Register::Reg1), compare(true, port.to_be_bytes().to_vec())]
        }
        Expr::DaddrIsLocal => {
            // fib daddr type: destination register, result = address type, by the destination address.
            let attributes = vec![number(1, register(Register::Reg1)), number(2, 3), number(3, 2)];
            vec![other("fib", attributes), compare(true, RTN_LOCAL.to_ne_bytes().to_vec())]
        }
        Expr::Translated => conntrack_has(CT_STATUS, IPS_DST_NAT),
        Expr::Established => conntrack_has(CT_STATE, CT_ESTABLISHED_RELATED),
        Expr::New => conntrack_has(CT_STATE, CT_NEW),
        Expr::Direction { reply } => {
            vec![conntrack(CT_DIRECTION, Register::Reg1), compare(true, vec![u8::from(*reply)])]
        }
        Expr::PacketMarked(mark) => {
            vec![load(Field::Mark, Register::Reg1), compare(true, mark.to_ne_bytes().to_vec())]
        }
        Expr::Marked(mark) => {
            vec![conntrack(CT_MARK, Register::Reg1), compare(true, mark.to_ne_bytes().to_vec())]
        }
        Expr::MarkConnection(mark) => {
            vec![
                immediate(Register::Reg1, DataAttribute::Value(mark.to_ne_bytes().to_vec())),
                mark_connection(),
            ]
        }
        Expr::MarkConnectionBy(fields, map) => {
            let mut list = load_all(fields);
            list.push(lookup(map, Some(Register::Reg1)));
            list.push(mark_connection());
            list
        }
        Expr::ZoneBy(fields, map) => {
            let mut list = load_all(fields);
            list.push(lookup(map, Some(Register::Reg1)));
            let original = DefaultNla::new(3, vec![0]);
            list.push(other("ct", vec![number(2, CT_ZONE), original, number(4, register(Register::Reg1))]));
            list
        }
        Expr::TakeMark => vec![conntrack(CT_MARK, Register::Reg1), mark_packet()],
        Expr::InSet(fields, set) => {
            let mut list = load_all(fields);
            list.push(lookup(set, None));
            list
        }
        Expr::TranslateBy(fields, map) => {
            let mut list = load_all(fields);
            list.push(lookup(map, Some(Register::Reg1)));
            list.push(translate(DNAT, true));
            list
        }
        Expr::TranslateAddressBy(fields, map) => {
            let mut list = load_all(fields);
            list.push(lookup(map, Some(Register::Reg1)));
            list.push(translate(DNAT, false));
            list
        }
        Expr::TranslateTo(address, port) => vec![
            immediate(Register::Reg1, DataAttribute::Value(octets(*address))),
            immediate(port_register(family), DataAttribute::Value(port.to_be_bytes().to_vec())),
            translate(DNAT, true),
        ],
        Expr::SourceTo(address) => {
            vec![immediate(Register::Reg1, DataAttribute::Value(octets(*address))), translate(SNAT, false)]
        }
        Expr::Masquerade => vec![other("masq", Vec::new())],
        Expr::Accept => vec![verdict(vec![VerdictAttribute::Code(Verdict::Other(NF_ACCEPT))])],
        Expr::Drop => vec![verdict(vec![VerdictAttribute::Code(Verdict::Other(NF_DROP))])],
        Expr::Jump(chain) => vec![verdict(vec![
            VerdictAttribute::Code(Verdict::Jump),
            VerdictAttribute::Chain((*chain).to_owned()),
        ])],
        Expr::Dispatch { key, numbers, chains } => {
            let mut list = load_all(key);
            list.push(lookup(numbers, Some(Register::Reg1)));
            // By way of the mark: what `nft` cannot say, it cannot list either.
            list.push(mark_packet());
            list.push(load(Field::Mark, Register::Reg1));
            list.push(lookup(chains, Some(Register::Verdict)));
            list
        }
        Expr::Balance { key, of, hashed, map, port } => {
            let mut list = load_all(key);
            let number = after(key, family);
            if *hashed {
                list.push(load(Field::Saddr, Register::from(number)));
                list.push(hash(*of, number, Field::Saddr.padded(family) as u32));
            } else {
                list.push(random(*of, number));
            }
            list.push(lookup(map, Some(Register::Reg1)));
            list.push(translate(DNAT, *port));
            list
        }
    }
}

/// Loads fields one after the other, as a key has them.
fn load_all(fields: &[Field], family: Family) -> Vec<Element> {
    let mut at = register(Register::Reg32_00);
    let mut list = Vec::new();
    for field in fields {
        list.push(load(*field, family, Register::from(at)));
        at += (field.padded(family) / 4) as u32;
    }
    list
}

/// The register after those that [`load_all`] fills.
fn after(fields: &[Field], family: Family) -> u32 {
    let words: usize = fields.iter().map(|field| field.padded(family) / 4).sum();
    register(Register::Reg32_00) + words as u32
}

fn load(field: Field, family: Family, to: Register) -> Element {
    let payload = |base, offset, length| {
        Expressions::Payload(vec![
            Payload::DestinationRegister(to),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(length),
        ])
    };
    let meta = |key| Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(to)]);
    Element::from(match field {
        // spec: RFC 791 3.1, RFC 8200 3
        Field::Saddr | Field::Daddr => {
            let length = field.bytes(family) as u32;
            let first = match family {
                Family::V4 => 12,
                Family::V6 => 8,
            };
            payload(NETWORK_HEADER, if field == Field::Saddr { first } else { first + length }, length)
        }
        Field::Dport => payload(TRANSPORT_HEADER, 2, 2),
        Field::Mac => payload(LINK_HEADER, 6, 6),
        Field::ConnectionMark => return conntrack(CT_MARK, to),
        // A chain or a zone is never looked up; as a number it would be nothing but a mark.
        Field::Mark | Field::Zone | Field::Chain => meta(MetaKey::Mark),
        Field::Protocol => meta(MetaKey::L4Proto),
        Field::Iifname => meta(MetaKey::Iifname),
        Field::Oifname => meta(MetaKey::Oifname),
    })
}

fn compare(equal: bool, bytes: Vec<u8>) -> Element {
    let operator = if equal { Operator::Equal } else { Operator::NotEqual };
    Element::from(Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(bytes)),
    ]))
}

/// The bytes that an address of the family has in common with its network.
fn prefix_mask(prefix: u8, family: Family) -> Vec<u8> {
    let ones =
        |byte: u8| u8::MAX.checked_shl(u32::from(8 - prefix.saturating_sub(byte * 8).min(8))).unwrap_or(0);
    (0..family.bits() / 8).map(ones).collect()
}

fn mask_by(mask: Vec<u8>) -> Element {
    Element::from(Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(mask.len() as u32),
        Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        Bitwise::Mask(DataAttribute::Value(mask)),
    ]))
}

/// Loads a connection's property.
fn conntrack(key: u32, to: Register) -> Element {
    other("ct", vec![number(1, register(to)), number(2, key)])
}

fn mark_packet() -> Element {
    let meta = vec![Meta::Key(MetaKey::Mark), Meta::SourceRegister(Register::Reg1)];
    Element::from(Expressions::Meta(meta))
}

fn mark_connection() -> Element {
    other("ct", vec![number(2, CT_MARK), number(4, register(Register::Reg1))])
}

/// Any of the bits is set in a 32-bit conntrack value.
fn conntrack_has(key: u32, bits: u32) -> Vec<Element> {
    vec![conntrack(key, Register::Reg1), mask_by(bits.to_ne_bytes().to_vec()), compare(false, vec![0; 4])]
}

/// A random number below `of`, in the host's byte order.
fn random(of: u32, to: u32) -> Element {
    let ng_random = 1;
    other("numgen", vec![number(1, to), number(2, of), number(3, ng_random), number(4, 0)])
}

/// A number less than `of` from what a register has, put in its place. With a seed of its own, which makes every node
/// draw the same.
fn hash(of: u32, at: u32, length: u32) -> Element {
    const SEED: u32 = 0x7273_776d;
    let jenkins = 0;
    let attributes = vec![
        number(1, at),
        number(2, at),
        number(3, length),
        number(4, of),
        number(5, SEED),
        number(7, jenkins),
    ];
    other("hash", attributes)
}

fn lookup(set: &str, to: Option<Register>) -> Element {
    let mut attributes = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(Register::Reg1)];
    attributes.extend(to.map(Lookup::DestinationRegister));
    Element::from(Expressions::Lookup(attributes))
}

/// The register after an address in the first one.
fn port_register(family: Family) -> Register {
    Register::from(after(&[Field::Daddr], family))
}

/// Translation to the address in the first register and, if asked for, the port in the one after it.
fn translate(kind: u32, family: Family, port: bool) -> Element {
    let protocol = match family {
        Family::V4 => libc::NFPROTO_IPV4,
        Family::V6 => libc::NFPROTO_IPV6,
    };
    let mut attributes =
        vec![number(1, kind), number(2, protocol as u32), number(3, register(Register::Reg1))];
    if port {
        attributes.push(number(5, register(port_register(family))));
    }
    other("nat", attributes)
}

fn immediate(to: Register, data: DataAttribute) -> Element {
    Element::from(Expressions::Immediate(vec![Immediate::DestinationRegister(to), Immediate::Data(data)]))
}

fn verdict(attributes: Vec<VerdictAttribute>) -> Element {
    immediate(Register::Verdict, DataAttribute::Verdict(attributes))
}

fn register(register: Register) -> u32 {
    register.into()
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Element {
    Element::from(Expressions::Other { expression_type: name.to_owned(), attributes })
}

/// What a map's value is for [`Expr::TranslateBy`].
#[must_use]
pub fn endpoint(address: IpAddr, port: u16) -> Vec<u8> {
    key(&[&octets(address), &port.to_be_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_as_many_ones_as_the_prefix_is_long() {
        assert_eq!(prefix_mask(20, Family::V4), [255, 255, 240, 0]);
        assert_eq!(prefix_mask(0, Family::V4), [0; 4]);
        assert_eq!(prefix_mask(32, Family::V4), [255; 4]);
        assert_eq!(prefix_mask(68, Family::V6)[7..10], [255, 240, 0]);
        assert_eq!(prefix_mask(128, Family::V6), [255; 16]);
    }
}
