//! The daemon's own options, as containers and `info` show them.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use rswarm_tests::harness::{Lab, binary, eventually};
use rswarm_tests::host::Host;

const PROFILE: &str = r#"{"defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;

/// What a shell script in a new container says.
fn inside(host: &Host, options: &[&str], script: &str) -> Result<String> {
    let said = host.docker(&[&["run", "--rm"], options, &["busybox", "sh", "-c", script]].concat())?;
    Ok(said.trim().to_owned())
}

#[test]
fn options_of_the_daemon_hold_for_containers_that_say_nothing() -> Result<()> {
    let mut lab = Lab::start(1)?;
    let profile = lab.dir.join("profile.json");
    std::fs::write(&profile, PROFILE)?;
    let host = &mut lab.hosts[0];
    host.import_busybox()?;
    host.stop()?;
    let flags = "--bip 10.77.0.5/24 --fixed-cidr 10.77.0.128/25 --icc=false --mtu 1400 --dns 9.9.9.9 --dns-search lan \
                 --dns-opt ndots:3 --default-address-pool base=10.78.0.0/16,size=24 --default-ulimit nofile=100:200 \
                 --default-shm-size 8m --no-new-privileges --userland-proxy=false --max-concurrent-downloads 2";
    host.flags = flags.split_whitespace().map(str::to_owned).collect();
    host.flags.extend(["--seccomp-profile".to_owned(), profile.display().to_string()]);
    host.start()?;
    host.ready()?;
    let host = &lab.hosts[0];
    limits_and_privileges(host)?;
    names_and_networks(host)?;
    shown_by_info(host, &profile.display().to_string())?;
    lab.finish()
}

fn limits_and_privileges(host: &Host) -> Result<()> {
    let script = "ulimit -n; ulimit -Hn; df -k /dev/shm | awk 'NR == 2 {print $2}'; \
                  awk '/NoNewPrivs/ {print $2}' /proc/self/status; mkdir /made 2>&1";
    let said = inside(host, &[], &format!("{script} || true"))?;
    ensure!(
        said == "100\n200\n8192\n1\nmkdir: can't create directory '/made': Operation not permitted",
        "{said}"
    );
    let own = [
        "--ulimit",
        "nofile=50:60",
        "--shm-size",
        "4m",
        "--security-opt",
        "no-new-privileges=false",
        "--security-opt",
        "seccomp=builtin",
    ];
    let said = inside(host, &own, script)?;
    ensure!(said == "50\n60\n4096\n0", "a container's own words come first: {said}");
    let id = host.docker(&["create", "busybox"])?;
    let shown = host.docker(&["inspect", "--format", "{{.HostConfig.ShmSize}}", id.trim()])?;
    ensure!(shown.trim() == "8388608", "{shown}");
    host.docker(&["rm", id.trim()]).map(drop)
}

fn names_and_networks(host: &Host) -> Result<()> {
    let said = inside(host, &[], "cat /etc/resolv.conf")?;
    ensure!(said == "nameserver 9.9.9.9\nsearch lan\noptions ndots:3", "{said}");
    let script = "cat /sys/class/net/eth0/mtu; ip route | awk '/default/ {print $3}'; \
                  ip -4 -o addr show eth0 | awk '{print $4}'";
    let said = inside(host, &[], script)?;
    let [mtu, gateway, address] = said.lines().collect::<Vec<_>>()[..] else { anyhow::bail!("{said}") };
    ensure!((mtu, gateway) == ("1400", "10.77.0.5"), "{said}");
    let last: u8 = address.trim_start_matches("10.77.0.").trim_end_matches("/24").parse()?;
    ensure!(last >= 128, "{said}");
    // Neighbours do not reach each other on the default bridge.
    let other = host.docker(&["run", "-d", "busybox", "sleep", "1000"])?;
    let format = "{{.NetworkSettings.IPAddress}}";
    let address = host.docker(&["inspect", "--format", format, other.trim()])?;
    let said = inside(host, &[], &format!("ping -c1 -W2 {} >/dev/null || echo apart", address.trim()))?;
    ensure!(said == "apart", "{said}");
    host.docker(&["rm", "-f", other.trim()])?;
    host.docker(&["rm", "-f", other.trim()])?;
    links_open_ports(host)?;
    for (name, subnet) in [("one", "10.78.0.0/24"), ("two", "10.78.1.0/24")] {
        host.docker(&["network", "create", name])?;
        let format = "{{range .IPAM.Config}}{{.Subnet}}{{end}}";
        let shown = host.docker(&["network", "inspect", "--format", format, name])?;
        ensure!(shown.trim() == subnet, "{shown}");
    }
    host.docker(&["network", "rm", "one", "two"]).map(drop)
}

/// A link opens what is exposed of the other, and nothing else.
fn links_open_ports(host: &Host) -> Result<()> {
    let serve = "echo found >/tmp/index.html; exec httpd -f -p 80 -h /tmp";
    host.docker(&["run", "-d", "--name", "db", "--expose", "80", "busybox", "sh", "-c", serve])?;
    host.docker(&["run", "-d", "--name", "web", "--link", "db", "busybox", "sleep", "1000"])?;
    let asks = |name: &str, script: &str| -> Result<String> {
        Ok(host.docker(&["exec", name, "sh", "-c", script])?.trim().to_owned())
    };
    let get = |address: &str, seconds: u8| {
        format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w {seconds} {address} 80 2>/dev/null | tail -1")
    };
    let address = || -> Result<String> {
        let shown = host.docker(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "db"])?;
        Ok(shown.trim().to_owned())
    };
    let found = || Ok(asks("web", &get("db", 5))? == "found");
    eventually(Duration::from_secs(30), "what is exposed is reached", found)?;
    let said = asks("web", "ping -c1 -W2 db >/dev/null || echo shut")?;
    ensure!(said == "shut", "{said}");
    let said = inside(host, &[], &get(&address()?, 2))?;
    ensure!(said.is_empty(), "only for the one with the link: {said}");
    host.docker(&["restart", "-t", "0", "db"])?;
    eventually(Duration::from_secs(30), "it is reached again", found)?;
    host.docker(&["rm", "--link", "web/db"])?;
    let said = asks("web", &get(&address()?, 2))?;
    ensure!(said.is_empty(), "without the link it is shut: {said}");
    host.docker(&["rm", "-f", "web", "db"]).map(drop)
}

fn shown_by_info(host: &Host, profile: &str) -> Result<()> {
    let shown = host.docker(&["info", "--format", "{{json .SecurityOptions}}"])?;
    ensure!(shown.contains(&format!("name=seccomp,profile={profile}")), "{shown}");
    ensure!(shown.contains("name=no-new-privileges"), "{shown}");
    let shown = host.docker(&["info", "--format", "{{json .DefaultAddressPools}} {{json .Warnings}}"])?;
    let warning = "WARNING: daemon is not using the default seccomp profile";
    ensure!(shown.trim() == format!(r#"[{{"Base":"10.78.0.0/16","Size":24}}] ["{warning}"]"#), "{shown}");
    let shown = host.docker(&["network", "inspect", "--format", "{{json .Options}}", "bridge"])?;
    for option in
        [r#""com.docker.network.bridge.enable_icc":"false""#, r#""com.docker.network.driver.mtu":"1400""#]
    {
        ensure!(shown.contains(option), "{shown}");
    }
    Ok(())
}

#[test]
fn options_that_cannot_hold_are_refused_with_the_reason() -> Result<()> {
    let said = |flags: &[&str]| -> Result<String> {
        let output = Command::new(binary()).args(["daemon", "--validate"]).args(flags).output()?;
        ensure!(!output.status.success(), "{flags:?} was accepted");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (flags, why) in [
        (&["--userland-proxy=true"][..], "the kernel passes published ports on"),
        (&["--iptables=false"], "invalid iptables `false`"),
        (&["--tlsverify"], "the API speaks no TLS"),
        (&["--exec-opt", "native.cgroupdriver=systemd"], "cgroups are made without systemd"),
        (&["--storage-driver", "zfs"], "invalid storage-driver `zfs`"),
        (&["--bip", "10.0.0.0/24"], "invalid bip `10.0.0.0/24`"),
        (&["--seccomp-profile", "/no/such/profile"], "opening seccomp profile (/no/such/profile) failed"),
    ] {
        let said = said(flags)?;
        ensure!(said.contains(why), "{flags:?}: {said}");
    }
    Ok(())
}
