//! Networks of both families with real daemons: bridges as docker's CLI makes and shows them, and services on an
//! overlay, by address, name, virtual address and published port.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rswarm_tests::harness::{Lab, eventually, run};
use rswarm_tests::host::Host;

use crate::support::{cluster, converged, inside, running_tasks};

const PATIENCE: Duration = Duration::from_secs(60);

/// Hosts with `fd99::N` beside their IPv4 address.
fn addressed(lab: &Lab) -> Result<()> {
    for (number, host) in (1..).zip(&lab.hosts) {
        let address = format!("fd99::{number}/64");
        run(host.command("ip").args(["addr", "add", &address, "dev", "eth0", "nodad"]))?;
    }
    Ok(())
}

fn inspect(host: &Host, what: &str, format: &str) -> Result<String> {
    Ok(host.docker(&["inspect", "--format", format, what])?.trim().to_owned())
}

fn curl(client: &Host, url: &str) -> Result<String> {
    run(client.command("curl").args(["-sS", "-g", "--fail", "--max-time", "20", url]))
}

#[test]
fn bridges_of_both_families_are_as_on_dockerd() -> Result<()> {
    let lab = Lab::start(2)?;
    addressed(&lab)?;
    let host = &lab.hosts[0];
    host.import_busybox()?;
    host.import_demo()?;

    host.docker(&["network", "create", "--ipv6", "auto"])?;
    let format = "{{.EnableIPv4}} {{.EnableIPv6}}{{range .IPAM.Config}} {{.Subnet}}{{end}}";
    let shown = inspect(host, "auto", format)?;
    let words: Vec<&str> = shown.split(' ').collect();
    ensure!(
        matches!(words[..], ["true", "true", v4, v6] if v4.ends_with("/16") && v6.starts_with("fd")),
        "{shown}"
    );
    host.docker(&["network", "create", "--ipv6", "--ipv4=false", "six"])?;
    let shown = inspect(host, "six", format)?;
    ensure!(shown.starts_with("false true fd") && shown.split(' ').count() == 3, "{shown}");

    let subnets = ["--subnet", "10.44.0.0/24", "--subnet", "fd44::/64", "--gateway", "fd44::9"];
    let taken = ["--aux-address", "router=10.44.0.2", "--aux-address", "six=fd44::1"];
    host.docker(&[&["network", "create", "--ipv6"], &subnets[..], &taken, &["asked"]].concat())?;
    let format = "{{range .IPAM.Config}}{{.Gateway}} {{.AuxiliaryAddresses}};{{end}}";
    let shown = inspect(host, "asked", format)?;
    ensure!(shown == "10.44.0.1 map[router:10.44.0.2];fd44::9 map[six:fd44::1];", "{shown}");
    for (network, needle) in [("fd44::/72", "overlaps"), ("fd44::1/64", "overlaps")] {
        let refused = host.refusal(&["network", "create", "--ipv6", "--subnet", network, "other"])?;
        ensure!(refused.contains(needle), "{refused}");
    }
    containers_have_both_addresses(host)?;
    ports_are_published_on_both(&lab)?;
    for network in ["asked", "auto", "six"] {
        host.docker(&["network", "rm", network])?;
    }
    lab.finish()
}

fn containers_have_both_addresses(host: &Host) -> Result<()> {
    let fixed = ["--network", "asked", "--ip6", "fd44::77", "-p", "8080:80"];
    host.docker(&[&["run", "-d", "--name", "web"], &fixed[..], &["demo:latest"]].concat())?;
    host.docker(&["run", "-d", "--name", "box", "--network", "asked", "busybox", "sleep", "1000"])?;
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}/{{.GlobalIPv6PrefixLen}} \
                  {{.IPv6Gateway}}{{end}}";
    let shown = inspect(host, "web", format)?;
    ensure!(shown == "10.44.0.3 fd44::77/64 fd44::9", "{shown}");
    let shown = inspect(host, "box", format)?;
    ensure!(shown == "10.44.0.4 fd44::2/64 fd44::9", "the first one is taken: {shown}");
    let hosts = host.docker(&["exec", "box", "cat", "/etc/hosts"])?;
    ensure!(hosts.contains("fd44::2\t") && hosts.contains("10.44.0.4\t"), "{hosts}");
    let names = host.docker(&["exec", "box", "nslookup", "web"])?;
    ensure!(names.contains("fd44::77") && names.contains("10.44.0.3"), "{names}");
    let name = host.docker(&["exec", "box", "nslookup", "fd44::77"])?;
    ensure!(name.contains("web.asked"), "{name}");
    for url in ["http://[fd44::77]/", "http://web/"] {
        host.docker(&["exec", "box", "wget", "-qO-", url])?;
    }
    let listens = host.docker(&["exec", "box", "cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra"])?;
    ensure!(listens.trim() == "0", "accept_ra is {listens}");
    // proc(5): address, interface number, prefix length, scope, flags, interface; 0x40 is tentative.
    let waits = host.docker(&["exec", "box", "grep", " 00 [4-7c-f]. *eth0$", "/proc/net/if_inet6"]);
    ensure!(waits.is_err(), "an address waits for others to object: {waits:?}");
    let refused =
        host.refusal(&["run", "--rm", "--network", "asked", "--ip6", "fd45::2", "busybox", "true"])?;
    ensure!(refused.contains("no configured subnet or ip-range contain the IP address fd45::2"), "{refused}");
    host.docker(&["network", "connect", "auto", "box"])?;
    let both = "{{range .NetworkSettings.Networks}}{{.GlobalIPv6Address}} {{end}}";
    ensure!(inspect(host, "box", both)?.split(' ').count() == 2, "an address on each network");
    let routes = host.docker(&["exec", "box", "ip", "-6", "route", "show", "default"])?;
    ensure!(routes.contains("fd44::9"), "{routes}");
    Ok(())
}

fn ports_are_published_on_both(lab: &Lab) -> Result<()> {
    let (host, client) = (&lab.hosts[0], &lab.hosts[1]);
    let shown = inspect(host, "web", "{{json (index .NetworkSettings.Ports \"80/tcp\")}}")?;
    let wanted = r#"[{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}]"#;
    ensure!(shown == wanted, "{shown}");
    let listed = host.docker(&["ps", "--filter", "name=web", "--format", "{{.Ports}}"])?;
    ensure!(listed.trim() == "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp", "{listed}");
    let page = curl(client, "http://[fd99::1]:8080/")?;
    ensure!(page.contains("RemoteAddr: [fd99::2]:"), "{page}");
    ensure!(curl(client, "http://10.99.0.1:8080/")?.contains("RemoteAddr: 10.99.0.2:"));
    // `localhost` is `::1` first, where no rule leads; the client must get to 127.0.0.1.
    ensure!(curl(host, "http://localhost:8080/")?.contains("Hostname"));
    host.docker(&["rm", "-f", "web", "box"])?;
    let gone =
        client.command("curl").args(["-sS", "-g", "--max-time", "20", "http://[fd99::1]:8080/"]).output()?;
    ensure!(gone.status.code() == Some(7), "refused, not {:?}", gone.status);
    Ok(())
}

/// A task's namespace and its addresses on the network `dual`.
struct Member {
    namespace: String,
    addresses: Vec<IpAddr>,
    name: String,
}

impl Member {
    /// Sockets that the work opens stay in the namespace.
    fn inside<R: Send>(&self, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
        inside(Path::new(&self.namespace), work)
    }
}

fn members(lab: &Lab, network: &str) -> Result<Vec<Member>> {
    let mut found = Vec::new();
    for host in &lab.hosts {
        let ids = host.docker(&["ps", "-q", "--filter", "label=com.docker.swarm.service.name=web"])?;
        for id in ids.split_whitespace() {
            let format = format!(
                "{{{{.State.Pid}}}} {{{{.Name}}}} {{{{with index .NetworkSettings.Networks \"{network}\"}}}}\
                 {{{{.IPAddress}}}} {{{{.GlobalIPv6Address}}}}{{{{end}}}}"
            );
            let shown = inspect(host, id, &format)?;
            let words: Vec<&str> = shown.split_whitespace().collect();
            let [pid, name, addresses @ ..] = &words[..] else { anyhow::bail!("{shown}") };
            let addresses = addresses.iter().map(|text| text.parse()).collect::<Result<_, _>>();
            found.push(Member {
                namespace: format!("/proc/{pid}/ns/net"),
                addresses: addresses.with_context(|| format!("addresses, not {shown:?}"))?,
                name: name.trim_start_matches('/').to_owned(),
            });
        }
    }
    Ok(found)
}

/// One exchange by TCP and one by UDP, of a few bytes and of many times the MTU.
fn exchange(from: &Member, to: &Member, address: IpAddr) -> Result<()> {
    const LARGE: usize = 1 << 20;
    const DATAGRAM: usize = 8000;
    let (tcp, udp) =
        to.inside(move || Ok((TcpListener::bind((address, 0))?, UdpSocket::bind((address, 0))?)))?;
    let (tcp_at, udp_at) = (tcp.local_addr()?, udp.local_addr()?);
    let echo = std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = tcp.accept()?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(&all)?;
        // The client reads to the end.
        drop(stream);
        udp.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = vec![0; DATAGRAM + 1];
        for _ in 0..2 {
            let (length, client) = udp.recv_from(&mut buffer)?;
            udp.send_to(&buffer[..length], client)?;
        }
        Ok(())
    });
    from.inside(move || {
        let mut stream = TcpStream::connect_timeout(&tcp_at, Duration::from_secs(5))?;
        let sent: Vec<u8> = (0..LARGE).map(|n| n as u8).collect();
        stream.write_all(&sent)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back)?;
        ensure!(back == sent, "{} bytes came back", back.len());
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any.parse::<SocketAddr>()?)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        for length in [5, DATAGRAM] {
            socket.send_to(&sent[..length], udp_at)?;
            let mut back = vec![0; DATAGRAM + 1];
            let (count, _) =
                socket.recv_from(&mut back).with_context(|| format!("a datagram of {length} bytes"))?;
            ensure!(
                count == length && back[..count] == sent[..length],
                "{count} of {length} bytes came back"
            );
        }
        Ok(())
    })?;
    echo.join().expect("the server does not panic")
}

/// What the container's own name server says: addresses of a name, or the name of an address.
fn looked_up(member: &Member, what: &str) -> Result<String> {
    let namespace = format!("--net={}", member.namespace);
    run(Command::new("nsenter").args([&namespace, "busybox", "nslookup", what, "127.0.0.11"]))
}

#[test]
fn services_speak_ipv6_alone_on_an_overlay_without_ipv4() -> Result<()> {
    let lab = cluster(2, 1)?;
    let first = &lab.hosts[0];
    let overlay = ["network", "create", "--driver", "overlay", "--ipv4=false"];
    let refused = first.refusal(&[&overlay[..], &["six"]].concat())?;
    ensure!(refused.contains("IPv4 or IPv6 must be enabled"), "{refused}");
    let refused = first.refusal(&[&overlay[..], &["--ipv6", "--subnet", "10.66.0.0/24", "six"]].concat())?;
    ensure!(refused.contains("subnet 10.66.0.0/24 needs IPv4 to be enabled"), "{refused}");
    first.docker(&[&overlay[..], &["--ipv6", "--subnet", "fd66::/64", "six"]].concat())?;
    let shown = "{{.EnableIPv4}} {{.EnableIPv6}}{{range .IPAM.Config}} {{.Subnet}} {{.Gateway}}{{end}}";
    let shown = inspect(first, "six", shown)?;
    ensure!(shown == "false true fd66::/64 fd66::1", "{shown}");
    let create = ["service", "create", "--detach", "--name", "web", "--mode", "global", "--network", "six"];
    first.docker(&[&create[..], &["-p", "8080:80", "demo:latest"]].concat())?;
    eventually(PATIENCE, "a task runs on each", || Ok(running_tasks(first, "web")?.len() == 2))?;
    let members = members(&lab, "six")?;
    ensure!(members.len() == 2, "{}", members.len());
    for (from, to) in [(0, 1), (1, 0)] {
        let [address] = members[to].addresses[..] else {
            anyhow::bail!("one address of {}", members[to].name)
        };
        ensure!(address.is_ipv6(), "{address}");
        exchange(&members[from], &members[to], address)?;
    }
    let vips = first.docker(&["service", "inspect", "web", "--format", "{{json .Endpoint.VirtualIPs}}"])?;
    let vip = vips.split('"').find_map(|word| word.strip_suffix("/64")?.parse::<IpAddr>().ok());
    let vip = vip.with_context(|| format!("an address in {vips}"))?;
    for member in &members {
        let found = looked_up(member, "web")?;
        ensure!(found.contains(&vip.to_string()), "{found}");
        member.inside(move || Ok(TcpStream::connect_timeout(&SocketAddr::new(vip, 80), PATIENCE)?))?;
    }
    for host in &lab.hosts {
        let url = format!("http://{}:8080/", host.address);
        eventually(PATIENCE, &format!("{url} answers"), || curl(first, &url).map(|_| true))?;
        host.rswarm(&["network", "check", "six"])?;
    }
    first.docker(&["service", "rm", "web"])?;
    eventually(PATIENCE, "the network is removed", || first.docker(&["network", "rm", "six"]).map(|_| true))?;
    lab.finish()
}

/// One more than hosts, so that some are on other nodes and some on the same.
const TASKS: &str = "6";

#[test]
fn services_speak_both_families_on_an_overlay() -> Result<()> {
    let lab = cluster(5, 1)?;
    addressed(&lab)?;
    let first = &lab.hosts[0];
    let subnets = ["--subnet", "10.55.0.0/24", "--subnet", "fd55::/64"];
    first.docker(
        &[&["network", "create", "--driver", "overlay", "--ipv6"], &subnets[..], &["dual"]].concat(),
    )?;
    let shown =
        inspect(first, "dual", "{{.EnableIPv6}}{{range .IPAM.Config}} {{.Subnet}} {{.Gateway}}{{end}}")?;
    ensure!(shown == "true 10.55.0.0/24 10.55.0.1 fd55::/64 fd55::1", "{shown}");
    let create = ["service", "create", "--detach", "--name", "web", "--replicas", TASKS, "--network", "dual"];
    first.docker(&[&create[..], &["-p", "8080:80", "demo:latest"]].concat())?;
    let tasks = TASKS.parse()?;
    converged(first, "web", tasks, PATIENCE)?;
    let members = members(&lab, "dual")?;
    ensure!(members.len() == tasks && members.iter().all(|member| member.addresses.len() == 2));

    for from in &members {
        for to in members.iter().filter(|to| to.name != from.name) {
            for address in to.addresses.iter().copied() {
                exchange(from, to, address)
                    .with_context(|| format!("{} to {} at {address}", from.name, to.name))?;
            }
        }
    }
    names_and_virtual_addresses_lead_to_tasks(first, &members)?;
    every_node_leads_every_client_to_a_task(&lab)?;
    first.docker(&["service", "rm", "web"])?;
    eventually(PATIENCE, "all containers are gone", || {
        Ok(lab.hosts.iter().all(|host| host.docker(&["ps", "-aq"]).is_ok_and(|ids| ids.trim().is_empty())))
    })?;
    first.docker(&["network", "rm", "dual"])?;
    lab.finish()
}

/// By the published port of each; a task sees who asks.
fn every_node_leads_every_client_to_a_task(lab: &Lab) -> Result<()> {
    let count = lab.hosts.len();
    for (server, client) in (1..=count).flat_map(|server| (1..=count).map(move |client| (server, client))) {
        let url = format!("http://[fd99::{server}]:8080/");
        let client_host = &lab.hosts[client - 1];
        eventually(PATIENCE, &format!("{url} answers"), || curl(client_host, &url).map(|_| true))?;
        for _ in 0..3 {
            let page = curl(client_host, &url)?;
            let kept = page.contains(&format!("RemoteAddr: [fd99::{client}]:"));
            ensure!(kept || client == server, "fd99::{client} asked {url}: {page}");
        }
    }
    Ok(())
}

/// Names are asked of each task's own name server; virtual addresses lead from each task to all, itself included.
fn names_and_virtual_addresses_lead_to_tasks(first: &Host, members: &[Member]) -> Result<()> {
    let format = "{{range .Endpoint.VirtualIPs}}{{.Addr}} {{end}}";
    let vips = first.docker(&["service", "inspect", "web", "--format", format])?;
    let of_dual: Vec<IpAddr> = vips
        .split_whitespace()
        .filter_map(|vip| vip.split('/').next())
        .filter(|vip| vip.starts_with("10.55.") || vip.starts_with("fd55:"))
        .map(|vip| Ok(vip.parse()?))
        .collect::<Result<_>>()?;
    ensure!(of_dual.len() == 2, "{vips}");
    let _echoes = Echo::start_all(members)?;
    for (from, member) in members.iter().enumerate() {
        let answer = looked_up(member, "web")?;
        ensure!(of_dual.iter().all(|vip| answer.contains(&vip.to_string())), "{answer}");
        let all = looked_up(member, "tasks.web")?;
        for to in members {
            let slot = to.name.rsplit_once('.').map_or(to.name.as_str(), |(slot, _)| slot);
            let one = looked_up(member, slot)?;
            for address in to.addresses.iter().map(ToString::to_string) {
                ensure!(all.contains(&address), "{address} is not in {all}");
                ensure!(one.contains(&address), "{address} is not in {one}");
            }
        }
        let address = member.addresses[1].to_string();
        let name = looked_up(member, &address)?;
        ensure!(name.contains(&format!("{}.dual", member.name)), "{name}");
        let count = members.len();
        for vip in of_dual.iter().map(|vip| SocketAddr::new(*vip, Echo::PORT)) {
            let met = member.inside(move || meets(count, || echoed_by_tcp(vip)));
            met.with_context(|| format!("task {from} to {vip} by TCP"))?;
            let met = member.inside(move || meets(count, || echoed_by_udp(vip)));
            met.with_context(|| format!("task {from} to {vip} by UDP"))?;
        }
    }
    Ok(())
}

/// Asks until each of so many has answered. A random choice of six misses one a hundred times in a row once in
/// thirteen million.
fn meets(count: usize, ask: impl Fn() -> Result<u8>) -> Result<()> {
    const TRIES: usize = 100;
    let mut met = BTreeSet::new();
    for _ in 0..TRIES {
        met.insert(ask()?);
        if met.len() == count {
            return Ok(());
        }
    }
    anyhow::bail!("only {met:?} of {count} tasks answered")
}

/// Who answered; what was sent came back, a few bytes and many times the MTU.
fn echoed_by_tcp(to: SocketAddr) -> Result<u8> {
    const LARGE: usize = 100_000;
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let sent: Vec<u8> = (0..LARGE).map(|n| n as u8).collect();
    for part in [&sent[..5], &sent[5..]] {
        stream.write_all(part)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    ensure!(back[1..] == sent, "{} bytes came back", back.len());
    Ok(back[0])
}

fn echoed_by_udp(to: SocketAddr) -> Result<u8> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any.parse::<SocketAddr>()?)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut who = BTreeSet::new();
    for length in [5, Echo::DATAGRAM] {
        let sent = vec![7; length];
        socket.send(&sent)?;
        let mut back = vec![0; Echo::DATAGRAM + 2];
        let count = socket.recv(&mut back).with_context(|| format!("a datagram of {length} bytes"))?;
        ensure!(back[1..count] == sent, "{count} bytes came back of {length}");
        who.insert(back[0]);
    }
    // One flow stays with one task.
    let [one] = Vec::from_iter(who)[..] else { anyhow::bail!("two tasks answered one flow") };
    Ok(one)
}

/// Answers in a task's namespace, by TCP and UDP and in both families, with the task's number and what came.
struct Echo {
    ended: Arc<AtomicBool>,
    namespace: String,
}

impl Echo {
    const PORT: u16 = 7777;
    const DATAGRAM: usize = 8000;

    fn start_all(members: &[Member]) -> Result<Vec<Echo>> {
        (0..).zip(members).map(|(number, member)| Echo::start(number, member)).collect()
    }

    fn start(number: u8, member: &Member) -> Result<Echo> {
        let (tcp, udp) = member
            .inside(|| Ok((TcpListener::bind(("::", Echo::PORT))?, UdpSocket::bind(("::", Echo::PORT))?)))?;
        let ended = Arc::new(AtomicBool::new(false));
        let echo = Echo { ended: ended.clone(), namespace: member.namespace.clone() };
        let over = ended.clone();
        std::thread::spawn(move || {
            for stream in tcp.incoming().take_while(|_| !over.load(Ordering::SeqCst)) {
                // A client that goes away is told of by the client.
                let _ = stream.and_then(|stream| Echo::answer(number, stream));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = vec![number; Echo::DATAGRAM + 1];
            while let Ok((length, client)) = udp.recv_from(&mut buffer[1..]) {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let _ = udp.send_to(&buffer[..=length], client);
            }
        });
        Ok(echo)
    }

    fn answer(number: u8, mut stream: TcpStream) -> std::io::Result<()> {
        let mut all = vec![number];
        stream.read_to_end(&mut all)?;
        stream.write_all(&all)
    }
}

impl Drop for Echo {
    /// Wakes both threads for the last time.
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let at = SocketAddr::from((Ipv6Addr::LOCALHOST, Echo::PORT));
        let wake = || {
            TcpStream::connect(at)?;
            UdpSocket::bind("[::]:0")?.send_to(b"", at)
        };
        let _ = inside(Path::new(&self.namespace), || Ok(wake()?));
    }
}
