//! What the documents say, held against the code: examples are parsed, flags, fields and reasons are compared, links are
//! followed, and the permissions for NATS are given to a server.

use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

use futures::StreamExt as _;
use pmp::{
    bus::{Arrival, Auth, Bus, ConnectOptions, Inbound, Keeping, LinkState, Message, Ready, Secret},
    engine::{PhaseReason, PhaseState, ReportStatus},
    manifest::{Format, OtherKinds, Reason, parse},
    protocol::{AckMessage, ControlMessage, GrantMessage, Prefix, SessionId, StateMessage, TargetMessage},
    resource::{ConditionReason, ConditionType, crd},
};
use serde_json::{Value, json};

use crate::support::{NatsConfig, Process, bin, eventually, nats, python, scratch};

const SOON: Duration = Duration::from_secs(30);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn text(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("cannot read {name}: {error}"))
}

/// Every document, by its path from the root.
fn documents() -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for folder in ["", "docs/"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
                names.push(format!("{folder}{name}"));
            }
        }
    }
    names.sort();
    names
}

/// The fenced blocks of one language.
pub(crate) fn blocks(document: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}");
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if line.trim_end() == fence {
            blocks.push(lines.by_ref().take_while(|line| line.trim_end() != "```").collect::<Vec<_>>().join("\n"));
        }
    }
    blocks
}

/// From one heading, in full, to the next of any level.
fn section(document: &str, heading: &str) -> String {
    let mut lines = document.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "there is no heading `{heading}`");
    lines.take_while(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}

/// What stands in backticks in the first column of a table.
fn first_column(table: &str) -> Vec<String> {
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.flat_map(|row| quoted(&format!("`{}", row.split(" | ").next().unwrap_or_default()))).collect()
}

/// Everything in backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_manifest_in_the_documents_is_valid() {
    let mut count = 0;
    for name in documents() {
        let document = text(&name);
        for block in blocks(&document, "yaml").into_iter().chain(blocks(&document, "json")) {
            let is_manifest = block.contains("kind: PhaseManifest") || block.starts_with(['-', '[']);
            if is_manifest {
                count += 1;
                let read = parse(block.as_bytes(), Format::Auto, OtherKinds::Refuse);
                assert!(read.is_ok(), "{name}: {:?}\n{block}", read.err());
            } else {
                assert!(
                    block.contains("kind: ClusterRole") || block.contains("authorization"),
                    "{name}: what is this example?\n{block}"
                );
            }
        }
    }
    assert!(count >= 6, "only {count} manifests were found: are they fenced as yaml or json?");
}

/// Every flag that stands in this text.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 2).map(str::to_owned).collect()
}

/// The flags of a verb, as its help lists them.
fn offered(verb: &str) -> BTreeSet<String> {
    let help = Command::new(bin()).args([verb, "--help"]).output().unwrap().stdout;
    let help = String::from_utf8(help).unwrap();
    let listed: Vec<&str> = help.lines().filter(|line| line.trim_start().starts_with('-')).collect();
    let mut offered = flags(&listed.join("\n"));
    offered.remove("--help");
    offered.remove("--version");
    offered
}

/// The flags of a table of a document.
fn described(document: &str, heading: &str) -> BTreeSet<String> {
    flags(&first_column(&section(&text(document), heading)).join("\n"))
}

#[test]
fn flags_are_those_of_the_operator() {
    assert_eq!(described("docs/operations.md", "## Flags"), offered("operator"));
}

#[test]
fn flags_are_those_of_the_runtime() {
    let own = described("docs/runtimes.md", "### Flags");
    let shared = described("docs/operations.md", "## Flags");
    let is_named =
        |flag: &&String| flag.starts_with("--nats") || ["--subject-prefix", "--log-format"].contains(&flag.as_str());
    let all: BTreeSet<String> = own.iter().chain(shared.iter().filter(is_named)).cloned().collect();
    assert_eq!(all, offered("runtime"));
}

#[test]
fn messages_in_the_documents_are_those_of_the_protocol() {
    let document = text("docs/runtimes.md");
    let mut count = 0;
    for (kind, parses) in [
        (
            "target",
            &(|body: &[u8]| TargetMessage::parse(body).is_ok_and(|m| m.spec.is_some())) as &dyn Fn(&[u8]) -> bool,
        ),
        ("ack", &|body| AckMessage::parse(body).is_ok_and(|m| m.attempt.is_some() && m.runtime.is_some())),
        ("grant", &|body| GrantMessage::parse(body).is_ok_and(|m| m.granted)),
        ("state", &|body| StateMessage::parse(body).is_ok_and(|m| m.attempt.is_some() && m.updated.is_some())),
        ("control", &|body| ControlMessage::parse(body).is_ok_and(|m| m.attempt.is_some())),
    ] {
        for block in blocks(&document, &format!("json {kind}")) {
            count += 1;
            assert!(parses(block.as_bytes()), "{kind}: {block}");
        }
    }
    assert_eq!(count, 7);
}

#[tokio::test]
async fn the_least_runtime_of_the_documents_runs_an_offer_once_and_says_so_again() {
    let server = nats(NatsConfig::default().without_jetstream()).await;
    let script = scratch("least-runtime").join("runtime.py");
    fs::write(&script, &blocks(&text("docs/runtimes.md"), "python")[0]).unwrap();
    let mut command = Command::new(python());
    command.arg(&script).env("NATS_URL", &server.url);
    let runtime = Process::start("least-runtime", &command);
    eventually(SOON, "it listens", async || runtime.stdout().contains("listening").then_some(())).await;

    let client = async_nats::connect(&server.url).await.unwrap();
    let mut acks = client.subscribe("plan.session.s1.ack").await.unwrap();
    let mut states = client.subscribe("plan.session.s1.state").await.unwrap();
    let offer = |spec: Value, token: &str, not_after: &str| {
        let phase = json!({"kind": "Phase", "id": "p", "spec": spec});
        json!({"phaseId": "p", "reason": "", "x-attempt": token, "x-notAfter": not_after, "x-phase": phase}).to_string()
    };
    let target = |labels: Value, token: &str| {
        offer(json!({"selector": labels, "x-greet": token}), token, "2130-07-19T20:02:00Z")
    };
    let say = async |channel: &str, body: String| {
        client.publish(format!("plan.session.s1.{channel}"), body.into()).await.unwrap();
    };
    let mut answer = async |granted: bool| {
        let ack = tokio::time::timeout(SOON, acks.next()).await.expect("an ack").unwrap();
        let token = AckMessage::parse(&ack.payload).unwrap().attempt.unwrap().to_string();
        client.publish(ack.reply.unwrap(), json!({"x-granted": granted}).to_string().into()).await.unwrap();
        token
    };
    say("target", target(json!({"matchLabels": {"site": "lab"}}), "others")).await;
    // Taken, these would be held for ever: nobody else could do them.
    say("target", offer(json!({"x-exec": {"command": ["true"]}}), "foreign", "2130-07-19T20:02:00Z")).await;
    say("target", offer(json!({"x-greet": 3}), "strange", "2130-07-19T20:02:00Z")).await;
    say("target", offer(json!({"x-greet": "late"}), "late", "2020-07-19T20:02:00.5Z")).await;
    say("target", target(Value::Null, "refused")).await;
    assert_eq!(answer(false).await, "refused");
    say("target", target(Value::Null, "world")).await;
    assert_eq!(answer(true).await, "world");
    let mut is_complete = async || {
        let state = tokio::time::timeout(SOON, states.next()).await.expect("a report").unwrap();
        StateMessage::parse(&state.payload).unwrap().status == ReportStatus::Complete
    };
    assert!(is_complete().await);
    say("control", json!({"command": "x-report"}).to_string()).await;
    assert!(is_complete().await);
    say("target", target(Value::Null, "world")).await;
    assert!(is_complete().await);
    assert_eq!(runtime.stdout().matches("hello world").count(), 1, "{}", runtime.tail());
}

#[test]
fn fields_are_those_of_the_resource() {
    let crd = serde_json::to_value(crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let properties =
        |part: &str| -> BTreeSet<String> { schema[part]["properties"].as_object().unwrap().keys().cloned().collect() };
    let document = text("docs/resource.md");
    let top = |names: Vec<String>| -> BTreeSet<String> {
        let name = |name: &String| name.split(['.', '[']).next().unwrap_or_default().to_owned();
        names.iter().map(name).collect()
    };
    assert_eq!(top(first_column(&section(&document, "## spec"))), properties("spec"));
    let mut status = top(first_column(&section(&document, "## status")));
    status.insert("conditions".to_owned());
    let mut stored = properties("status");
    // The generation is Kubernetes' own word, as everywhere.
    stored.remove("observedGeneration");
    assert_eq!(status, stored);
}

#[test]
fn words_are_those_of_the_code() {
    let document = text("docs/resource.md");
    let listed = |heading: &str| first_column(&section(&document, heading));
    assert_eq!(listed("### Reasons of conditions"), ConditionReason::ALL.map(ConditionReason::as_str));
    assert_eq!(listed("### Reasons of a phase"), PhaseReason::ALL.map(PhaseReason::as_str));
    let states: BTreeSet<String> = quoted(&section(&document, "### States of a phase")).into_iter().collect();
    for state in PhaseState::ALL {
        assert!(states.contains(state.as_str()), "the state {state} is not described");
    }
    let conditions = section(&document, "## Conditions");
    for kind in ConditionType::ALL {
        assert!(conditions.contains(kind.as_str()), "the condition {} is not described", kind.as_str());
    }
    let mistakes = [
        Reason::Syntax,
        Reason::NotAManifest,
        Reason::TooLarge,
        Reason::DuplicateField,
        Reason::UnknownField,
        Reason::MissingField,
        Reason::WrongType,
        Reason::BadValue,
        Reason::WrongKind,
        Reason::BadId,
        Reason::DuplicateId,
        Reason::UnknownDependency,
        Reason::SelfDependency,
        Reason::Cycle,
        Reason::BadDuration,
        Reason::BadLabel,
        Reason::OutOfRange,
    ];
    let listed = quoted(&section(&document, "### Reasons of mistakes in a manifest"));
    assert_eq!(listed, mistakes.map(Reason::as_str));
}

#[test]
fn links_lead_somewhere() {
    for name in documents() {
        let document = text(&name);
        for link in document.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let path = match file {
                "" => root().join(&name),
                file => root().join(&name).parent().unwrap().join(file),
            };
            let there = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {link}: {error}"));
            let slug = |heading: &str| {
                let kept = heading.trim_start_matches('#').trim().to_lowercase();
                kept.replace(|c: char| !(c.is_alphanumeric() || c == ' ' || c == '-'), "").replace(' ', "-")
            };
            let is_there = there.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor);
            assert!(anchor.is_empty() || is_there, "{name}: {link} names no heading");
        }
    }
}

#[test]
fn every_guard_is_where_the_list_says() {
    let listed = Command::new(python()).arg(root().join("tests/guards.py")).arg("--list").output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
}

#[tokio::test]
async fn permissions_on_nats_are_enough_for_an_operator_and_a_runtime() {
    let document = text("docs/operations.md");
    let mut blocks = blocks(&document, "json").into_iter();
    let block = blocks.find(|block| block.contains("authorization")).unwrap();
    let block = block.replace("OPERATOR-PASSWORD", "o-secret").replace("RUNTIME-PASSWORD", "r-secret");
    let settings: Value = serde_json::from_str(&block).unwrap();
    let server = nats(NatsConfig::default().authorization(settings["authorization"].clone())).await;
    let connect = async |user: &str, password: &str, inbox: Option<&str>| {
        let mut options = ConnectOptions::new([&server.url]);
        options.auth = Auth::User { name: Secret::Text(user.to_owned()), password: Secret::Text(password.to_owned()) };
        if let Some(inbox) = inbox {
            inbox.clone_into(&mut options.inbox_prefix);
        }
        let bus = Bus::connect(options).await.unwrap();
        let mut link = bus.link();
        link.wait_for(|link| link.state == LinkState::Connected).await.unwrap();
        bus
    };
    let operator = connect("operator", "o-secret", Some("_INBOX_pmp-operator.one")).await;
    let runtime = connect("runtime", "r-secret", Some("_INBOX_pmp-runtime.worker")).await;
    let inbound = Inbound::run(operator.clone(), Prefix::default(), "here".to_owned()).await.unwrap();
    eventually(SOON, "every subscription of the operator is proved", async || {
        matches!(&*inbound.ready().borrow(), Ready::Yes { keeping: Keeping::Reports, .. }).then_some(())
    })
    .await;

    let mut targets = runtime.subscribe("plan.session.*.target", Some("workers")).await.unwrap();
    // Only one subscription may hear the ack: the server lets each request be answered once.
    let mut sink = inbound.register(&SessionId::new("a").unwrap());
    eventually(SOON, "the target arrives", async || {
        operator.publish(Message::new("plan.session.a.target", "{}")).await.unwrap();
        tokio::time::timeout(Duration::from_millis(200), targets.next()).await.ok().flatten()
    })
    .await;
    let grant = async {
        let Some(Arrival::Message(ack)) = sink.next().await else { panic!("the ack arrives") };
        operator.publish(Message::new(ack.reply.unwrap(), json!({"x-granted": true}).to_string())).await.unwrap();
    };
    let ask = runtime.request(Message::new("plan.session.a.ack", r#"{"phaseId": "b", "accepted": true}"#), SOON);
    let (answer, ()) = tokio::join!(ask, grant);
    assert!(String::from_utf8_lossy(&answer.unwrap().body).contains("x-granted"));
}
