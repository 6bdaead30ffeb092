//! DNS for one container, at 127.0.0.11 in its namespace: names of its networks, everything else from the
//! upstream servers.
//!
//! The sockets are in the container's namespace and on ports of the kernel's choice; the container's own
//! rules lead port 53 there, so that it may run a name server itself. Here are the servers, their bounds against
//! floods, and what is answered; `wire` reads and writes messages, `forward` asks the upstream servers.

mod forward;
mod wire;

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{PTR, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rswarm_base::{IdGen, Scope};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use self::forward::{FORWARD, forward};
use self::wire::{
    Known, Transport, UDP_BYTES_MAX, address_record, parse_arpa, read_framed, refusal, reply, seconds,
    write_framed,
};
use crate::model::DnsConfig;
use crate::names::{Answer, Names, Served};
use crate::netns::Netns;
use crate::nft::{self, Held, Settled};
use crate::rules;
use crate::watch::{self, Listen, Watch};

/// Where containers ask.
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The table in the container's namespace.
const TABLE: &str = "rswarm-dns";
/// How long an answer may be remembered. Tasks that have no virtual address before them stay as long after the last
/// answer that names them; what would not wait is answered for the moment alone.
pub const NAME_TTL: Duration = Duration::from_secs(2);
/// Questions of one container in flight; more are refused, as Docker does.
const IN_FLIGHT: usize = 1024;
/// Those of them that upstream servers were asked: each takes a descriptor of the daemon.
const UPSTREAM_IN_FLIGHT: usize = 128;
/// Questions of all containers that upstream servers were asked; one more waits for its turn, as long as for
/// an answer.
const UPSTREAM_ALL: usize = 512;
/// TCP connections of one container: a resolver needs one, and an idle one must not keep out a question.
const CONNECTIONS: usize = 64;
/// A container may ask this often in each [`RATE_WINDOW`]; more wait in its socket, and what does not fit there
/// is lost. A busy proxy asks a hundredth of it.
const RATE: u32 = 1000;
/// See [`RATE`].
const RATE_WINDOW: Duration = Duration::from_millis(100);
/// A TCP client that says nothing for this long is hung up on.
const IDLE: Duration = Duration::from_secs(5);

/// A container's DNS. Dropping it leaves the sockets open: they end by [`Server::stop`] or with the scope.
#[derive(Debug)]
pub struct Server {
    config: Arc<ArcSwap<DnsConfig>>,
    scope: Scope,
}

/// All containers' servers, on the daemon's own runtime: questions leave from its namespace.
#[derive(Debug)]
pub struct Servers {
    names: Names,
    scope: Scope,
    running: HashMap<String, Server>,
    upstream: Arc<Semaphore>,
}

impl Servers {
    /// None yet.
    pub fn new(names: Names, scope: Scope) -> Servers {
        let upstream = Arc::new(Semaphore::new(UPSTREAM_ALL));
        Servers { names, scope, running: HashMap::new(), upstream }
    }

    /// Serves a container, or changes what it is told.
    pub async fn serve(&mut self, netns: Netns, container: String, config: DnsConfig) -> io::Result<()> {
        if let Some(server) = self.running.get(&container) {
            server.reconfigure(config);
            return Ok(());
        }
        let server = self.start(&netns, config).await?;
        self.running.insert(container, server);
        Ok(())
    }

    async fn start(&self, netns: &Netns, config: DnsConfig) -> io::Result<Server> {
        let config = Arc::new(ArcSwap::from_pointee(config));
        let resolver = Resolver::new(self.names.clone(), config, Arc::clone(&self.upstream));
        Server::start(netns, resolver, &self.scope).await
    }

    /// Ends a container's server.
    pub async fn stop(&mut self, container: &str) {
        if let Some(server) = self.running.remove(container) {
            server.stop().await;
        }
    }

    /// Ends all of them.
    pub async fn stop_all(&mut self) {
        futures_util::future::join_all(self.running.drain().map(|(_, server)| server.stop())).await;
    }
}

/// What the tasks of one server share.
#[derive(Debug, Clone)]
struct Resolver {
    names: Names,
    config: Arc<ArcSwap<DnsConfig>>,
    in_flight: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    pace: Arc<Pace>,
    upstream: Arc<Semaphore>,
    upstream_all: Arc<Semaphore>,
}

/// How often a container may ask.
#[derive(Debug)]
struct Pace(Mutex<Window>);

#[derive(Debug)]
struct Window {
    ends: Instant,
    left: u32,
}

impl Pace {
    fn new() -> Pace {
        Pace(Mutex::new(Window { ends: Instant::now(), left: 0 }))
    }

    /// Counts a question; when it has to wait, until when.
    fn admit(&self) -> Option<Instant> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if window.ends <= now {
            *window = Window { ends: now + RATE_WINDOW, left: RATE };
        }
        match window.left.checked_sub(1) {
            Some(left) => {
                window.left = left;
                None
            }
            None => Some(window.ends),
        }
    }

    /// Returns when a question may be answered.
    async fn turn(&self) {
        while let Some(until) = self.admit() {
            tokio::time::sleep_until(until).await;
        }
    }
}

impl Server {
    /// Opens the sockets, leads port 53 to them and serves.
    async fn start(netns: &Netns, resolver: Resolver, parent: &Scope) -> io::Result<Server> {
        // From before the rules are made, so that no change is missed.
        let watch = Watch::open(netns, Listen::Rules).await?;
        let (udp, tcp, rules) = netns.run(open_sockets).await??;
        let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
        let config = Arc::clone(&resolver.config);
        let scope = parent.child("dns");
        scope.spawn(serve_udp(Arc::new(udp), resolver.clone(), scope.clone()));
        scope.spawn(serve_tcp(tcp, resolver, scope.clone()));
        keep_rules(&scope, watch, netns.clone(), rules);
        Ok(Server { config, scope })
    }

    /// Changes networks and upstream servers.
    pub fn reconfigure(&self, config: DnsConfig) {
        self.config.store(Arc::new(config));
    }

    /// Closes the sockets, which hold the container's namespace.
    pub async fn stop(self) {
        self.scope.shutdown(FORWARD).await;
    }
}

fn open_sockets() -> io::Result<(std::net::UdpSocket, std::net::TcpListener, Vec<Held>)> {
    let udp = std::net::UdpSocket::bind((SERVER, 0))?;
    let tcp = std::net::TcpListener::bind((SERVER, 0))?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    let table = rules::dns(TABLE, SERVER, udp.local_addr()?.port(), tcp.local_addr()?.port());
    let (held, _) = nft::settle(Vec::new(), vec![table])?;
    Ok((udp, tcp, held))
}

/// Puts the container's rules right whenever somebody changes them: without them it has no names.
fn keep_rules(scope: &Scope, watch: Watch, netns: Netns, rules: Vec<Held>) {
    let kept = Arc::new(ArcSwap::from_pointee(rules));
    watch::spawn(scope, watch, move || {
        let (netns, kept) = (netns.clone(), Arc::clone(&kept));
        Box::pin(async move {
            let before = Vec::clone(&kept.load());
            let settle = move || {
                let wanted = before.iter().map(|held: &Held| held.table().clone()).collect();
                nft::settle(before, wanted)
            };
            match netns.run(settle).await.and_then(std::convert::identity) {
                Ok((held, settled)) => {
                    kept.store(Arc::new(held));
                    if settled == Settled::Repaired {
                        tracing::warn!(
                            table = TABLE,
                            "somebody changed a container's rules; they are put right"
                        );
                    }
                }
                Err(error) => {
                    tracing::warn!(table = TABLE, %error, "a container's rules could not be looked at")
                }
            }
            true
        })
    });
}

async fn serve_udp(socket: Arc<UdpSocket>, resolver: Resolver, scope: Scope) {
    let mut buffer = vec![0; usize::from(UDP_BYTES_MAX)];
    loop {
        let received = tokio::select! {
            biased;
            () = scope.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        // An error here is about an earlier answer that could not be delivered.
        let Ok((length, client)) = received else { continue };
        tokio::select! {
            biased;
            () = scope.cancelled() => return,
            () = resolver.pace.turn() => {}
        }
        let query = buffer[..length].to_vec();
        let Some(permit) = resolver.permit() else {
            if let Some(refusal) = refusal(&query, ResponseCode::Refused) {
                let _ = socket.try_send_to(&refusal, client);
            }
            continue;
        };
        let (socket, resolver, cancel) = (Arc::clone(&socket), resolver.clone(), scope.token());
        scope.spawn(async move {
            let _permit = permit;
            let answer = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                answer = resolver.answer(&query, Transport::Udp) => answer,
            };
            if let Some(answer) = answer {
                let _ = socket.send_to(&answer, client).await;
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, resolver: Resolver, scope: Scope) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = scope.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: trying at once would only spin.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        // One more is hung up on.
        let Ok(permit) = Arc::clone(&resolver.connections).try_acquire_owned() else { continue };
        let (resolver, cancel) = (resolver.clone(), scope.token());
        scope.spawn(async move {
            let _permit = permit;
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                // A client that breaks off or sends garbage is its own affair.
                _ = serve_stream(stream, &resolver) => {}
            }
        });
    }
}

async fn serve_stream(mut stream: TcpStream, resolver: &Resolver) -> io::Result<()> {
    loop {
        let query = timeout(IDLE, read_framed(&mut stream)).await??;
        resolver.pace.turn().await;
        let Some(answer) = resolver.answer(&query, Transport::Tcp).await else { return Ok(()) };
        timeout(IDLE, write_framed(&mut stream, &answer)).await??;
    }
}

impl Resolver {
    fn new(names: Names, config: Arc<ArcSwap<DnsConfig>>, upstream_all: Arc<Semaphore>) -> Resolver {
        let bound = |permits| Arc::new(Semaphore::new(permits));
        Resolver {
            names,
            config,
            in_flight: bound(IN_FLIGHT),
            connections: bound(CONNECTIONS),
            pace: Arc::new(Pace::new()),
            upstream: bound(UPSTREAM_IN_FLIGHT),
            upstream_all,
        }
    }

    /// Asks upstream, when it is this container's and this question's turn.
    async fn ask_upstream(&self, query: &[u8], config: &DnsConfig, transport: Transport) -> Option<Vec<u8>> {
        let Ok(_own) = self.upstream.try_acquire() else { return refusal(query, ResponseCode::Refused) };
        match timeout(FORWARD, self.upstream_all.acquire()).await {
            Ok(Ok(_turn)) => forward(query, config, transport).await,
            Ok(Err(_)) | Err(_) => refusal(query, ResponseCode::ServFail),
        }
    }

    fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.in_flight).try_acquire_owned().ok()
    }

    /// The answer to a message; `None` for one that is no question at all.
    async fn answer(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let Ok(message) = Message::from_vec(query) else { return refusal(query, ResponseCode::FormErr) };
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        if message.metadata.op_code != OpCode::Query {
            return refusal(query, ResponseCode::NotImp);
        }
        let [question] = message.queries.as_slice() else { return refusal(query, ResponseCode::FormErr) };
        let config = self.config.load_full();
        let (name, kind) = (question.name(), question.query_type());
        let local = match question.query_class() {
            DNSClass::IN => self.local(&config, name, kind),
            _ => None,
        };
        let is_short = config.keep_short && !name.to_ascii().trim_end_matches('.').contains('.');
        match local {
            Some(records) => reply(&message, records, transport),
            None if config.internal => refusal(query, ResponseCode::ServFail),
            // As Docker answers: the client goes on with its search list.
            None if is_short && matches!(kind, RecordType::A | RecordType::AAAA) => {
                reply(&message, Known::default(), transport)
            }
            None => self.ask_upstream(query, &config, transport).await,
        }
    }

    /// What the networks know; `None` when they do not know the name.
    fn local(&self, config: &DnsConfig, name: &Name, kind: RecordType) -> Option<Known> {
        let text = name.to_ascii();
        if kind == RecordType::SRV
            && let Some(served) = self.names.served(&config.networks, &text)
        {
            return Some(self.services(&config.networks, name, served));
        }
        if kind == RecordType::PTR {
            let found = self.names.reverse(&config.networks, parse_arpa(&text)?)?;
            let target = Name::from_ascii(format!("{found}.")).ok()?;
            let record = Record::from_rdata(name.clone(), seconds(true), RData::PTR(PTR(target)));
            return Some(Known { answers: vec![record], ..Known::default() });
        }
        let Answer { mut addresses, lasts } = self.addresses(config, &text)?;
        shuffle(&mut addresses);
        // A name that is known and has nothing of this kind: an empty answer, never somebody else's.
        addresses.retain(
            |address| if address.is_ipv4() { kind == RecordType::A } else { kind == RecordType::AAAA },
        );
        let answers = addresses.into_iter().map(|address| address_record(name, address, lasts)).collect();
        Some(Known { answers, ..Known::default() })
    }

    /// Who serves a named port (RFC 2782), with their addresses.
    fn services(&self, networks: &[String], question: &Name, mut served: Vec<Served>) -> Known {
        let mut known = Known::default();
        shuffle(&mut served);
        for Served { name, port } in served {
            let Ok(target) = Name::from_ascii(format!("{name}.")) else { continue };
            let found = self.names.resolve(networks, &name);
            let lasts = found.as_ref().is_none_or(|answer| answer.lasts);
            let addresses = found.into_iter().flat_map(|answer| answer.addresses);
            known.more.extend(addresses.map(|address| address_record(&target, address, lasts)));
            let data = RData::SRV(SRV::new(0, 0, port, target));
            known.answers.push(Record::from_rdata(question.clone(), seconds(lasts), data));
        }
        known
    }

    /// What a name leads to. An alias goes before all names, and hides what its network has of that name.
    // moby: Sandbox.ResolveName
    fn addresses(&self, config: &DnsConfig, name: &str) -> Option<Answer> {
        let bare = name.trim_end_matches('.');
        let aliases = || config.aliases.iter().filter(|alias| alias.alias.eq_ignore_ascii_case(bare));
        let found =
            aliases().find_map(|alias| self.names.resolve(std::slice::from_ref(&alias.network), &alias.name));
        found.or_else(|| {
            let is_open = |network: &&String| aliases().all(|alias| alias.network != **network);
            let open: Vec<String> = config.networks.iter().filter(is_open).cloned().collect();
            self.names.resolve(&open, name)
        })
    }
}

fn shuffle<T>(addresses: &mut [T]) {
    if addresses.len() < 2 {
        return;
    }
    let mut random = IdGen::from_system();
    for last in (1..addresses.len()).rev() {
        addresses.swap(last, (random.number() % (last as u64 + 1)) as usize);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::wire::UDP_BYTES;
    use super::*;
    use crate::model::DnsAlias;
    use crate::names::NameTable;
    use hickory_proto::op::Query;

    fn resolver(count: u8) -> Resolver {
        let names = Names::default();
        let mut table = NameTable::new("net");
        for n in 0..count {
            table.add_container(&["many".to_owned()], &[IpAddr::from([10, 0, 0, n])]);
        }
        names.publish("n", table);
        let config = DnsConfig { networks: vec!["n".into()], ..DnsConfig::default() };
        let config = Arc::new(ArcSwap::from_pointee(config));
        Resolver::new(names, config, Arc::new(Semaphore::new(UPSTREAM_ALL)))
    }

    async fn ask(resolver: &Resolver, name: &str, kind: RecordType, transport: Transport) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).expect("name"), kind));
        let answer = resolver.answer(&message.to_vec().expect("query"), transport).await.expect("an answer");
        Message::from_vec(&answer).expect("message")
    }

    #[tokio::test]
    async fn a_known_name_without_an_address_of_the_kind_is_empty_and_not_missing() {
        let resolver = resolver(1);
        let answer = ask(&resolver, "MANY.net.", RecordType::A, Transport::Udp).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 1));
        let answer = ask(&resolver, "many.", RecordType::AAAA, Transport::Udp).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
        let answer = ask(&resolver, "nobody.", RecordType::A, Transport::Udp).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }

    fn reconfigured(resolver: &Resolver, change: impl FnOnce(&mut DnsConfig)) {
        let mut config = DnsConfig::clone(&resolver.config.load());
        change(&mut config);
        resolver.config.store(Arc::new(config));
    }

    #[tokio::test]
    async fn a_container_is_not_led_to_itself_nor_out_of_where_it_is() {
        let resolver = resolver(1);
        let code = async |name| {
            let answer = ask(&resolver, name, RecordType::A, Transport::Udp).await;
            (answer.metadata.response_code, answer.answers.len())
        };
        let own = IpAddr::from([127, 0, 0, 7]);
        reconfigured(&resolver, |config| (config.upstream, config.own) = (vec![own], vec![own]));
        assert_eq!(
            code("outside.example.").await,
            (ResponseCode::ServFail, 0),
            "its own server is not asked"
        );
        reconfigured(&resolver, |config| config.keep_short = true);
        assert_eq!(code("outside.").await, (ResponseCode::NoError, 0), "left to the search list");
        assert_eq!(code("many.").await, (ResponseCode::NoError, 1));
        reconfigured(&resolver, |config| config.internal = true);
        assert_eq!(code("outside.").await, (ResponseCode::ServFail, 0));
    }

    #[tokio::test]
    async fn a_named_port_is_answered_with_who_serves_it_and_where() {
        let resolver = resolver(0);
        let port = crate::model::NamedPort {
            name: "http".into(),
            protocol: crate::model::Protocol::Tcp,
            port: 8080,
        };
        resolver.names.publish("n", NameTable::of_service("net", "web", IpAddr::from([10, 0, 0, 9]), port));
        let answer = ask(&resolver, "_http._tcp.web.", RecordType::SRV, Transport::Udp).await;
        assert_eq!(answer.answers[0].data.to_string(), "0 0 8080 web.net.");
        assert_eq!(answer.additionals[0].to_string(), "web.net. 2 IN A 10.0.0.9");
        let answer = ask(&resolver, "web.", RecordType::SRV, Transport::Udp).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    }

    #[tokio::test]
    async fn a_long_answer_is_truncated_by_udp_and_whole_by_tcp() {
        let resolver = resolver(200);
        let answer = ask(&resolver, "many.", RecordType::A, Transport::Udp).await;
        assert!(answer.metadata.truncation);
        assert!(answer.to_vec().expect("message").len() <= usize::from(UDP_BYTES));
        let answer = ask(&resolver, "many.", RecordType::A, Transport::Tcp).await;
        assert_eq!((answer.metadata.truncation, answer.answers.len()), (false, 200));
    }

    #[tokio::test]
    async fn an_alias_goes_before_the_names_of_its_network() {
        let resolver = resolver(1);
        let answers = async |resolver: &Resolver, name: &str| {
            let answer = ask(resolver, name, RecordType::A, Transport::Udp).await;
            (answer.metadata.response_code, answer.answers.len())
        };
        let with = |alias: &str, name: &str| {
            let alias = DnsAlias { network: "n".to_owned(), alias: alias.to_owned(), name: name.to_owned() };
            let config =
                DnsConfig { networks: vec!["n".into()], aliases: vec![alias], ..DnsConfig::default() };
            resolver.config.store(Arc::new(config));
        };
        with("db", "many");
        assert_eq!(answers(&resolver, "DB.").await, (ResponseCode::NoError, 1));
        assert_eq!(answers(&resolver, "many.").await, (ResponseCode::NoError, 1));
        with("many", "gone");
        assert_eq!(answers(&resolver, "many.").await, (ResponseCode::NXDomain, 0), "not somebody else's");
    }

    #[tokio::test]
    async fn an_address_leads_to_its_name() {
        let answer = ask(&resolver(1), "0.0.0.10.in-addr.arpa.", RecordType::PTR, Transport::Udp).await;
        assert_eq!(answer.answers[0].data.to_string(), "many.net.");
    }

    #[tokio::test]
    async fn garbage_is_answered_with_its_identifier_or_not_at_all() {
        let resolver = resolver(0);
        assert_eq!(resolver.answer(&[1, 2, 3], Transport::Udp).await, None);
        let answer = resolver.answer(&[0xab, 0xcd, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xff], Transport::Udp).await;
        let answer = Message::from_vec(&answer.expect("an answer")).expect("message");
        assert_eq!((answer.metadata.id, answer.metadata.response_code), (0xabcd, ResponseCode::FormErr));
    }

    /// Whatever a container sends: no panic, and either nothing comes back or a reply with its identifier
    /// that fits.
    fn check_any(query: &[u8], transport: Transport) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let Some(answer) = runtime.block_on(resolver(200).answer(query, transport)) else { return };
        let message = Message::from_vec(&answer).expect("a well-formed reply");
        assert_eq!(message.metadata.message_type, MessageType::Response);
        assert_eq!(answer[..2], query[..2]);
        if transport == Transport::Udp {
            let room = usize::from(UDP_BYTES_MAX).max(query.len());
            assert!(answer.len() <= room, "{} bytes for {}", answer.len(), query.len());
        }
    }

    pub(super) fn well_formed(name: &str, kind: u16) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).expect("name"), RecordType::from(kind)));
        message.to_vec().expect("query")
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { cases: 512, ..Default::default() })]

        #[test]
        fn any_bytes_are_survived(query in proptest::collection::vec(0u8.., 0..600), tcp: bool) {
            check_any(&query, if tcp { Transport::Tcp } else { Transport::Udp });
        }

        #[test]
        fn a_question_with_any_damage_is_survived(
            name in "(many|tasks\\.many|[a-z][a-z0-9_]{0,19}(\\.[a-z]{1,10}){0,5})",
            kind: u16,
            damage in proptest::collection::vec((0usize..80, 0u8..), 0..6),
            tail in proptest::collection::vec(0u8.., 0..40),
            tcp: bool,
        ) {
            let mut query = well_formed(&format!("{name}."), kind);
            for (at, byte) in damage {
                if let Some(slot) = query.get_mut(at) {
                    *slot = byte;
                }
            }
            query.extend(tail);
            check_any(&query, if tcp { Transport::Tcp } else { Transport::Udp });
        }
    }

    #[tokio::test]
    async fn a_flood_of_one_container_leaves_upstream_servers_to_the_others() {
        let (one, other) = (resolver(1), resolver(0));
        let other = Resolver { upstream_all: Arc::clone(&one.upstream_all), ..other };
        // Its questions hang; nobody answers them.
        let _hanging = Arc::clone(&one.upstream).acquire_many_owned(UPSTREAM_IN_FLIGHT as u32).await;
        let answer = ask(&one, "outside.", RecordType::A, Transport::Udp).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
        let answer = ask(&other, "outside.", RecordType::A, Transport::Udp).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "it has no servers, but its turn");
        let answer = ask(&one, "many.", RecordType::A, Transport::Udp).await;
        assert_eq!(answer.answers.len(), 1, "what its networks know is answered all the same");
    }

    #[tokio::test]
    async fn a_container_is_kept_to_its_pace() {
        let (pace, began) = (Pace::new(), Instant::now());
        for _ in 0..RATE {
            pace.turn().await;
        }
        for _ in 0..RATE * 3 {
            pace.turn().await;
        }
        assert!(began.elapsed() >= RATE_WINDOW * 3, "{:?}", began.elapsed());
    }
}
