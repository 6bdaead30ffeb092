//! Managers that die, stop and are cut off, one after the other, while users go on: what was acknowledged is there,
//! and while nobody leads, the API says so and still shows what there is.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rswarm_tests::harness::{Lab, binary, eventually};
use rswarm_tests::host::Host;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(40);
/// What users do while each of the three managers has each of three troubles.
const OPERATIONS_PER_TROUBLE: usize = 22;
/// Of these, those at the manager in trouble: each takes until it knows that nobody leads there.
const AT_THE_CUT_OFF: usize = 3;
const NO_LEADER: &str = "The swarm does not have a leader. It's possible that too few managers are online.";
const LOST: &str = "the leader changed while the request was in progress";

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }
}

/// An object by its path in the API.
type Path = String;
/// The label that tells one write of an object from the next; `None` is an object that is not there.
type Written = Option<String>;

/// What the API answers.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// Whether it rests on what a manager without a leader knew last.
    is_old: bool,
    body: String,
}

impl Answer {
    fn to(host: &Host, method: &str, path: &str, body: &str) -> Result<Answer> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-i", "-X", method, "-H", "Content-Type: application/json", "-d", body]);
        curl.arg("--unix-socket").arg(host.dir.join("rswarm.sock")).arg(format!("http://localhost{path}"));
        let text = rswarm_tests::harness::run(&mut curl)?;
        let (head, body) = text.split_once("\r\n\r\n").context("a head")?;
        let status = head.split(' ').nth(1).context("a status")?.parse()?;
        let is_old = head.to_lowercase().contains("rswarm-stale: 1");
        Ok(Answer { status, is_old, body: body.to_owned() })
    }
}

/// What users know: how each object may be, by the answers that they had.
#[derive(Default)]
struct Users {
    /// By all answers so far. More than one, once the outcome of a call was not said: nobody touches that object again.
    may_be: BTreeMap<Path, BTreeSet<Written>>,
    /// The writes to each object and what was answered, for whoever has to find out why it is not so.
    told: BTreeMap<Path, Vec<String>>,
    acknowledged: usize,
    unknown: usize,
    refused: usize,
    count: usize,
}

impl Users {
    /// One operation at a host, as chance has it.
    fn act(&mut self, host: &Host, dice: &mut Dice) -> Result<()> {
        self.count += 1;
        let label = format!("w{}", self.count);
        let known: Vec<Path> = self
            .may_be
            .iter()
            .filter(|(_, may_be)| may_be.len() == 1 && !may_be.contains(&None))
            .map(|(path, _)| path.clone())
            .collect();
        let choice = dice.below(8);
        if choice < 4 || known.len() < 3 {
            let kind = if choice.is_multiple_of(2) { "configs" } else { "services" };
            // With what no identifier has: the API takes a unique beginning of one where there is no such name.
            let path = format!("/{kind}/o-{}", self.count);
            let answer = Answer::to(host, "POST", &format!("/{kind}/create"), &spec(&path, &label))?;
            return self.note(host, path, Some(label), &answer);
        }
        let path = known[dice.below(known.len())].clone();
        if choice == 7 {
            let answer = Answer::to(host, "DELETE", &path, "")?;
            return self.note(host, path, None, &answer);
        }
        let found = Answer::to(host, "GET", &path, "")?;
        if found.status == 404 && found.is_old {
            self.refused += 1;
            return Ok(());
        }
        ensure!(found.status == 200, "{path} cannot be read: {found:?}");
        let found: Value = serde_json::from_str(&found.body)?;
        let target = format!("{path}/update?version={}", found["Version"]["Index"]);
        let answer = Answer::to(host, "POST", &target, &spec(&path, &label))?;
        self.note(host, path, Some(label), &answer)
    }

    fn note(&mut self, host: &Host, path: Path, written: Written, answer: &Answer) -> Result<()> {
        let body = &answer.body;
        let call = format!("{} at {}: {written:?} {} {body:.80}", self.count, host.name, answer.status);
        self.told.entry(path.clone()).or_default().push(call);
        match answer.status {
            200..=299 => {
                self.acknowledged += 1;
                self.may_be.insert(path, BTreeSet::from([written]));
            }
            // Read from a manager that has no leader, the version may be an old one.
            400 if body.contains("update out of sequence") => self.refused += 1,
            // Nor need that one know of the object.
            404 if answer.is_old => self.refused += 1,
            500 if body.contains(NO_LEADER) => self.refused += 1,
            503 if body.contains(LOST) => {
                self.unknown += 1;
                self.may_be.entry(path).or_insert_with(|| BTreeSet::from([None])).insert(written);
            }
            _ => bail!("{path}: {answer:?}"),
        }
        Ok(())
    }

    /// Everything is as the answers said.
    fn check(&self, host: &Host) -> Result<()> {
        for (path, may_be) in &self.may_be {
            // What is marked as old promises nothing: asked again until it is not.
            let mut answer = Answer::to(host, "GET", path, "")?;
            eventually(PATIENCE, "a read is not marked as old", || {
                if answer.is_old {
                    answer = Answer::to(host, "GET", path, "")?;
                }
                Ok(!answer.is_old)
            })?;
            let is = match answer.status {
                200 => {
                    let found: Value = serde_json::from_str(&answer.body)?;
                    Some(found["Spec"]["Labels"]["w"].as_str().context("a label")?.to_owned())
                }
                404 => None,
                _ => bail!("{path}: {answer:?}"),
            };
            ensure!(
                may_be.contains(&is),
                "{path} on {} is {is:?}, was acknowledged as {may_be:?}: {:#?}",
                host.name,
                self.told.get(path)
            );
        }
        Ok(())
    }
}

/// A config, or a service without replicas, with its label.
fn spec(path: &str, label: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    let labels = json!({ "w": label });
    if path.starts_with("/configs") {
        return json!({ "Name": name, "Labels": labels, "Data": "bm90aGluZw==" }).to_string();
    }
    let task = json!({ "ContainerSpec": { "Image": "demo:latest" } });
    let mode = json!({ "Replicated": { "Replicas": 0 } });
    json!({ "Name": name, "Labels": labels, "TaskTemplate": task, "Mode": mode }).to_string()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Kill,
    Stop,
    Cut,
}

#[test]
fn what_was_acknowledged_outlives_every_manager_in_turn() -> Result<()> {
    let mut lab = Lab::start(3)?;
    lab.form_cluster(3)?;
    let mut users = Users::default();
    let mut dice = Dice(0x5eed_0b5e);
    for trouble in [Trouble::Kill, Trouble::Stop, Trouble::Cut] {
        for victim in 0..3 {
            begin(&mut lab, victim, trouble)?;
            for round in 0..OPERATIONS_PER_TROUBLE {
                let at = match trouble {
                    Trouble::Cut if round % (OPERATIONS_PER_TROUBLE / AT_THE_CUT_OFF) == 3 => victim,
                    _ => (victim + 1 + dice.below(2)) % 3,
                };
                users.act(&lab.hosts[at], &mut dice).with_context(|| format!("{trouble:?} of {victim}"))?;
            }
            end(&mut lab, victim, trouble)?;
        }
    }
    for host in &lab.hosts {
        users.check(host)?;
    }
    println!(
        "{} operations: {} acknowledged, {} refused, {} of unknown outcome",
        users.count, users.acknowledged, users.refused, users.unknown
    );
    ensure!(users.acknowledged > users.count / 2, "hardly anything was acknowledged");
    for path in users.may_be.keys().filter(|path| path.starts_with("/services")) {
        lab.hosts[0].api("DELETE", path, "")?;
    }
    lab.finish()
}

fn begin(lab: &mut Lab, victim: usize, trouble: Trouble) -> Result<()> {
    match trouble {
        Trouble::Kill => lab.hosts[victim].kill(),
        Trouble::Stop => lab.hosts[victim].stop(),
        Trouble::Cut => lab.cut(victim),
    }
}

fn end(lab: &mut Lab, victim: usize, trouble: Trouble) -> Result<()> {
    if trouble == Trouble::Cut {
        lab.heal(victim)?;
    } else {
        lab.hosts[victim].start()?;
        lab.hosts[victim].ready()?;
    }
    // The next one's turn comes when the quorum does not need this one.
    eventually(PATIENCE, "all managers are reachable", || {
        let nodes = lab.hosts[victim].docker(&["node", "ls", "--format", "{{.ManagerStatus}}"])?;
        Ok(nodes.matches("Reachable").count() == 2 && nodes.matches("Leader").count() == 1)
    })
}

#[test]
fn without_a_leader_writes_are_refused_and_reads_are_marked_as_old() -> Result<()> {
    let mut lab = Lab::start(3)?;
    lab.form_cluster(3)?;
    let written = spec("/services/web", "w1");
    let (status, body) = lab.hosts[2].api("POST", "/services/create", &written)?;
    ensure!(status == 201, "{status} {body}");
    let is_marked = |host: &Host| -> Result<bool> {
        let answer = Answer::to(host, "GET", "/services", "")?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(answer.is_old)
    };
    ensure!(!is_marked(&lab.hosts[2])?, "a read is marked as old while there is a leader");
    lab.hosts[0].kill()?;
    lab.hosts[1].kill()?;

    let last = &lab.hosts[2];
    let (status, body) = last.api("POST", "/services/create", &spec("/services/other", "w2"))?;
    ensure!(status == 500 && (body.contains(NO_LEADER) || body.contains(LOST)), "{status} {body}");
    // Docker's client and our own read on; ours says what it is worth.
    ensure!(last.docker(&["service", "ls", "--format", "{{.Name}}"])?.trim() == "web");
    ensure!(is_marked(last)?, "a read without a leader is not marked");
    last.docker(&["service", "ps", "web"])?;
    last.docker(&["service", "inspect", "web"])?;
    eventually(PATIENCE, "the others are shown as gone", || {
        let nodes = last.docker(&["node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"])?;
        ensure!(nodes.lines().count() == 3 && !nodes.contains("Leader"), "{nodes}");
        Ok(nodes.contains("h3 Reachable") && nodes.matches("Unreachable").count() == 2)
    })?;
    let mut ours = Command::new(binary());
    ours.args(["-H", &last.socket(), "service", "ls"]).stdin(Stdio::null());
    let output = ours.output()?;
    let (out, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && out.contains("web"), "{out}{told}");
    ensure!(told.contains("warning: the swarm has no leader"), "{told}");

    lab.hosts[0].start()?;
    lab.hosts[0].ready()?;
    eventually(PATIENCE, "two of three take writes again", || {
        Ok(lab.hosts[2].api("DELETE", "/services/web", "")?.0 == 200)
    })?;
    ensure!(!is_marked(&lab.hosts[2])?, "a read is marked as old although there is a leader again");
    lab.hosts[1].start()?;
    lab.hosts[1].ready()?;
    lab.finish()
}
