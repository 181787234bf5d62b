//! From a file or standard input to a plan and the settings to run it with.

use std::{io::Read as _, path::Path, sync::Arc};

use crate::{
    engine::{Pace, Settings, Strategy},
    manifest::{self, Format, OtherKinds, Phase, Plan, Problem, Reason, Resource},
    protocol::SessionId,
    resource::{ManifestSource, Orders, read_settings},
    runtime::{Exec, Labels},
};
use anyhow::Context as _;

/// Largest document read, in bytes: some 200,000 phases, the most that a manifest may hold.
const DOCUMENT_BYTES_MAX: u64 = 64 << 20;

/// A document as it came.
#[derive(Debug)]
pub struct Source {
    /// For messages: the path as written, or `standard input`.
    pub name: String,
    pub text: Vec<u8>,
    format: Format,
}

/// What is to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    pub plan: Arc<Plan>,
    pub settings: Settings,
    pub strategy: Strategy,
    pub session: SessionId,
    /// `spec.dryRun`.
    pub is_dry_run: bool,
}

/// Reads all of a file, or of standard input for `-`. The name's ending says JSON or YAML, else the text does.
pub fn read(path: &Path) -> anyhow::Result<Source> {
    let (name, mut from): (String, Box<dyn std::io::Read>) = if path.as_os_str() == "-" {
        ("standard input".to_owned(), Box::new(std::io::stdin().lock()))
    } else {
        let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        (path.display().to_string(), Box::new(file))
    };
    let mut text = Vec::new();
    from.by_ref().take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut text).with_context(|| format!("cannot read {name}"))?;
    anyhow::ensure!(
        u64::try_from(text.len()).is_ok_and(|size| size <= DOCUMENT_BYTES_MAX),
        "{name} is larger than {} MiB",
        DOCUMENT_BYTES_MAX >> 20
    );
    let format = match path.extension().and_then(|ending| ending.to_str()) {
        Some("json") => Format::Json,
        Some("yaml" | "yml") => Format::Yaml,
        _ => Format::Auto,
    };
    Ok(Source { name, text, format })
}

/// Everything that is wrong with the document, or what to run.
pub fn understand(source: &Source) -> Result<Task, Vec<Problem>> {
    let document = manifest::parse_judging(&source.text, source.format, OtherKinds::Refuse, mistakes)?;
    let mut task = Task {
        plan: Arc::new(document.plan),
        settings: Settings::default(),
        strategy: Strategy::default(),
        session: SessionId::default_for("local", "run"),
        is_dry_run: false,
    };
    if let Some(resource) = document.resource {
        obey(&resource, &mut task)?;
    }
    Ok(task)
}

/// What of these phases would wait for ever on a machine without a cluster, or could only fail; judged apart, because a plan
/// of it can be shown.
pub fn unmeetable<'a>(
    task: &Task,
    wanted: impl Iterator<Item = &'a Phase>,
    labels: &Labels,
    work: &Exec,
) -> Vec<Problem> {
    let problem = |pointer: String, message: String, hint: &str| Problem {
        reason: Reason::BadValue,
        pointer,
        message,
        hint: Some(hint.to_owned()),
        place: None,
    };
    let mut problems = Vec::new();
    for phase in wanted {
        if let Some(wait) = phase.spec.wait_for_others.first() {
            let what = format!("phase '{}' waits for a phase of {}", phase.id, wait.manifest);
            let message = format!("{what}, and there is no other manifest here");
            let hint = "leave x-waitFor out, or name a --target that does not wait for it";
            problems.push(problem(String::new(), message, hint));
        }
        if !labels.match_selector(&phase.spec.selector) {
            let message = format!("phase '{}' selects labels that no runtime here carries", phase.id);
            let hint = "give them with --runtime-label, or name a --target that does not wait for it";
            problems.push(problem(String::new(), message, hint));
        }
        if let Some(why) = phase.spec.extensions.get("x-exec").and_then(|exec| work.objection(exec)) {
            let message = format!("phase '{}' cannot be executed: {why}", phase.id);
            let hint = "write x-exec: {command: [program, argument, ..], env: {NAME: value}, workingDir: directory}";
            problems.push(problem(String::new(), message, hint));
        }
    }
    if task.strategy == Strategy::Runtime {
        let message = "the strategy Runtime leaves the order to a runtime that walks .start, and there is none here";
        problems.push(problem("/spec/strategy".to_owned(), message.to_owned(), "write Hybrid, or leave it out"));
    }
    problems
}

/// Everything that is wrong with what surrounds the phases.
fn mistakes(resource: &Resource) -> Vec<Problem> {
    let (spec, mut problems) = read_settings(&resource.spec);
    match Orders::new(&spec) {
        Ok(orders) if matches!(orders.manifest, ManifestSource::ConfigMap(_)) => problems.push(Problem {
            reason: Reason::BadValue,
            pointer: "/spec/manifestFrom".to_owned(),
            message: "manifestFrom names a ConfigMap, and there is no cluster here".to_owned(),
            hint: Some("write the phases into spec.phases".to_owned()),
            place: None,
        }),
        Ok(_) => {}
        Err(found) => problems.extend(found),
    }
    problems
}

/// Takes over from the resource's spec, in which [`mistakes`] found nothing, what means something without a cluster.
/// Suspend, shutdown and requests steer a session that lives in one, and are passed over.
fn obey(resource: &Resource, task: &mut Task) -> Result<(), Vec<Problem>> {
    let (spec, _) = read_settings(&resource.spec);
    let orders = Orders::new(&spec)?;
    let problems = orders.problems_with(&task.plan);
    if !problems.is_empty() {
        return Err(problems);
    }
    let name = resource.name.as_deref().unwrap_or("run");
    let namespace = resource.namespace.as_deref().unwrap_or("local");
    task.session = orders
        .session_id
        .and_then(|id| SessionId::new(id).ok())
        .unwrap_or_else(|| SessionId::default_for(namespace, name));
    task.strategy = orders.strategy;
    task.is_dry_run = orders.dry_run;
    task.settings = Settings { pace: Pace::Going, shutdown: None, ..orders.settings };
    Ok(())
}
