//! Laws: however a manifest is spelled it is one manifest, and its canonical form is a fixed point.

use proptest::{collection::vec, option, prelude::*, test_runner::TestRng};
use serde_json::{Map, Value, json};

use super::plan;
use crate::manifest::{Format, OtherKinds, Plan, diff, parse};

/// Any manifest: phases wait for earlier ones only.
fn canonical_manifests() -> impl Strategy<Value = Value> {
    vec(phase_parts(), 0..8).prop_map(|parts| {
        let phases = parts.into_iter().enumerate().map(|(index, (mut spec, waits, timeout))| {
            let ids: Vec<String> = waits.iter().filter(|_| index > 0).map(|w| format!("p{}", w.index(index))).collect();
            let mut wait_for = Map::new();
            let mut seen: Vec<String> = Vec::new();
            for id in ids {
                if !seen.contains(&id) {
                    seen.push(id);
                }
            }
            if !seen.is_empty() {
                wait_for.insert("phases".into(), json!(seen));
            }
            if let Some(timeout) = timeout {
                wait_for.insert("timeout".into(), json!(timeout));
            }
            if !wait_for.is_empty() {
                spec.insert("waitFor".into(), Value::Object(wait_for));
            }
            json!({"kind": "Phase", "id": format!("p{index}"), "spec": spec})
        });
        Value::Array(phases.collect())
    })
}

type Parts = (Map<String, Value>, Vec<prop::sample::Index>, Option<&'static str>);

fn phase_parts() -> impl Strategy<Value = Parts> {
    let durations = prop::sample::select(vec!["300ms", "30s", "1h30m", "1s500ms"]);
    (specs(), vec(any::<prop::sample::Index>(), 0..4), option::of(durations))
}

fn specs() -> impl Strategy<Value = Map<String, Value>> {
    let words = "[a-z]{1,8}";
    let optional: Vec<BoxedStrategy<Option<(String, Value)>>> = vec![
        optional("description", "\\PC{1,20}".prop_map(Value::from)),
        optional("selector", (words, words).prop_map(|(k, v)| json!({"matchLabels": {k: v}}))),
        optional("instanceMode", Just(json!("onUse"))),
        optional("retry", (2..=1_000_000).prop_map(|n| json!({"maxAttempts": n}))),
        optional("onFailure", handlers("continue")),
        optional("onSuccess", handlers("raise")),
        optional("x-timeouts", Just(json!({"attempt": "1m30s", "offer": "5s"}))),
        optional("x-backoff", (2..100).prop_map(|n| json!({"factor": n, "initial": "1s", "jitter": "None"}))),
        optional("x-priority", (1..i32::MAX).prop_map(Value::from)),
        optional("x-waitFor", words.prop_map(|w| json!([{"manifest": w, "phase": "done"}]))),
        optional("x-onExhausted", Just(json!("Hold"))),
        optional("x-exec", values()),
        optional("x-own", values()),
    ];
    optional.prop_map(|fields| fields.into_iter().flatten().collect())
}

fn optional(
    name: &'static str,
    value: impl Strategy<Value = Value> + 'static,
) -> BoxedStrategy<Option<(String, Value)>> {
    option::weighted(0.4, value.prop_map(move |value| (name.to_owned(), value))).boxed()
}

fn handlers(action: &'static str) -> impl Strategy<Value = Value> {
    (option::of(Just(action)), vec("\\PC{0,12}", 1..3), option::of("[a-z]{1,5}@[a-z]{1,5}")).prop_map(
        |(action, messages, email)| {
            let mut handler = json!({"spec": {"message": messages}});
            if let Some(action) = action {
                handler["action"] = json!(action);
            }
            if let Some(email) = email {
                handler["spec"]["notify"] = json!({"email": [email]});
            }
            handler
        },
    )
}

/// Any value that stands for something, with numbers in canonical spelling.
fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("has a fraction", |n| n.is_finite() && n.fract() != 0.0).prop_map(Value::from),
        "\\PC{1,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_-]{1,6}", inner, 1..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Writes a canonical manifest as JSON in some other spelling, by the toss of a coin.
struct Speller<'r> {
    rng: &'r mut TestRng,
}

impl Speller<'_> {
    fn toss(&mut self) -> bool {
        self.rng.next_u32() & 1 == 0
    }

    fn name(&mut self, camel: &str) -> String {
        if camel.starts_with("x-")
            && !matches!(camel, "x-timeouts" | "x-backoff" | "x-priority" | "x-waitFor" | "x-onExhausted")
        {
            return camel.to_owned();
        }
        let (prefix, camel) = camel.split_at(if camel.starts_with("x-") { 2 } else { 0 });
        let spelled = match self.rng.next_u32() % 4 {
            0 => camel.to_owned(),
            1 => camel[..1].to_uppercase() + &camel[1..],
            2 => camel.to_uppercase(),
            _ => camel.chars().fold(String::new(), |mut text, c| {
                if c.is_uppercase() {
                    text.push('_');
                }
                text.extend(c.to_lowercase());
                text
            }),
        };
        format!("{prefix}{spelled}")
    }

    fn manifest(&mut self, canonical: &Value) -> String {
        let phases: Vec<String> = canonical.as_array().unwrap().iter().map(|phase| self.phase(phase)).collect();
        format!("[{}]", phases.join(", "))
    }

    fn phase(&mut self, phase: &Value) -> String {
        let mut fields = vec![(self.name("kind"), "\"Phase\"".to_owned()), (self.name("id"), phase["id"].to_string())];
        let spec = self.object(&phase["spec"], &[]);
        fields.push((self.name("spec"), spec));
        self.shuffled(fields)
    }

    /// `path` names the objects around; the known fields in them are spelled, everything else is left alone.
    fn object(&mut self, value: &Value, path: &[&str]) -> String {
        let mut fields = Vec::new();
        for (key, value) in value.as_object().unwrap() {
            let inside: Vec<&str> = path.iter().copied().chain([&**key]).collect();
            let text = self.field(value, &inside);
            fields.push((self.name(key), text));
        }
        let absent: &[&str] = match path {
            [] => &[
                "description",
                "selector",
                "instanceMode",
                "waitFor",
                "retry",
                "onFailure",
                "onSuccess",
                "x-timeouts",
                "x-exec",
            ],
            ["retry"] => &["maxAttempts"],
            ["onFailure" | "onSuccess"] => &["action", "spec"],
            ["onFailure" | "onSuccess", "spec"] => &["message", "notify", "labels"],
            ["waitFor"] => &["phases", "timeout"],
            _ => &[],
        };
        let given: Vec<&String> = value.as_object().unwrap().keys().collect();
        for name in absent.iter().filter(|name| !given.iter().any(|key| key == *name)) {
            if self.rng.next_u32().is_multiple_of(6) {
                let nothing = if self.toss() { "null" } else { "{}" };
                let spelled = if *name == "x-exec" { (*name).to_owned() } else { self.name(name) };
                fields.push((spelled, nothing.to_owned()));
            }
        }
        self.shuffled(fields)
    }

    fn field(&mut self, value: &Value, path: &[&str]) -> String {
        match path {
            ["retry" | "onFailure" | "onSuccess" | "selector" | "x-timeouts" | "x-backoff"]
            | ["onFailure" | "onSuccess", "spec"]
            | ["onFailure" | "onSuccess", "spec", "notify"] => self.object(value, path),
            ["waitFor"] => self.wait_for(value),
            ["onFailure" | "onSuccess", "spec", .., "message" | "email"] => self.one_or_list(value),
            ["x-priority"] | ["retry", "maxAttempts"] | ["x-backoff", "factor"] => match self.rng.next_u32() % 3 {
                0 => value.to_string(),
                1 => format!("\"{value}\""),
                _ => format!("{value}.0"),
            },
            ["x-timeouts", "attempt"] => {
                ["\"90\"", "90", "\"1.5m\"", "\"1m30s\""][self.rng.next_u32() as usize % 4].to_owned()
            }
            ["x-waitFor"] if self.toss() => value[0].to_string(),
            _ => value.to_string(),
        }
    }

    fn wait_for(&mut self, value: &Value) -> String {
        let Some(phases) = value.get("phases") else { return self.object(value, &["waitFor"]) };
        if value.get("timeout").is_none() && self.toss() {
            return self.one_or_list(phases);
        }
        let repeated =
            Value::Array(phases.as_array().unwrap().iter().flat_map(|id| [id.clone(), id.clone()]).collect());
        let list = if self.toss() { repeated.to_string() } else { self.one_or_list(phases) };
        let mut fields = vec![(if self.toss() { self.name("phases") } else { self.name("dependsOn") }, list)];
        if let Some(timeout) = value.get("timeout") {
            fields.push((self.name("timeout"), timeout.to_string()));
        }
        self.shuffled(fields)
    }

    fn one_or_list(&mut self, list: &Value) -> String {
        match list.as_array().map(Vec::as_slice) {
            Some([one]) if self.toss() => one.to_string(),
            _ => list.to_string(),
        }
    }

    fn shuffled(&mut self, mut fields: Vec<(String, String)>) -> String {
        for i in (1..fields.len()).rev() {
            fields.swap(i, self.rng.next_u32() as usize % (i + 1));
        }
        let fields: Vec<String> = fields.into_iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
        format!("{{{}}}", fields.join(", "))
    }
}

fn read(text: &str, format: Format) -> Plan {
    match parse(text.as_bytes(), format, OtherKinds::Refuse) {
        Ok(document) => document.plan,
        Err(problems) => panic!("{problems:#?}\nin {text}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { fork: false, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn the_canonical_form_is_a_fixed_point(manifest in canonical_manifests()) {
        let plan = plan(&manifest.to_string());
        prop_assert_eq!(&plan.canonical(), &manifest);
        prop_assert_eq!(read(&manifest.to_string(), Format::Yaml), plan);
    }

    #[test]
    fn block_yaml_is_the_same_manifest(manifest in canonical_manifests()) {
        let text = serde_saphyr::to_string(&manifest).unwrap();
        prop_assert_eq!(read(&text, Format::Yaml).canonical(), manifest);
    }

    #[test]
    fn every_mix_of_spellings_has_one_digest(manifest in canonical_manifests(), seed in any::<[u8; 32]>()) {
        let plan = plan(&manifest.to_string());
        let mut rng = TestRng::from_seed(prop::test_runner::RngAlgorithm::ChaCha, &seed);
        let spelled = Speller { rng: &mut rng }.manifest(&manifest);
        for format in [Format::Json, Format::Yaml] {
            let other = read(&spelled, format);
            prop_assert_eq!(other.digest(), plan.digest(), "{}", spelled);
            prop_assert_eq!(&other, &plan);
        }
    }

    #[test]
    fn a_diff_is_undone_by_its_reverse(old in canonical_manifests(), new in canonical_manifests()) {
        let (old, new) = (plan(&old.to_string()), plan(&new.to_string()));
        let (there, back) = (diff(&old, &new), diff(&new, &old));
        prop_assert_eq!(&there.added, &back.removed);
        prop_assert_eq!(&there.removed, &back.added);
        prop_assert_eq!(&there.edges_added, &back.edges_removed);
        prop_assert_eq!(there.changed.len(), back.changed.len());
        prop_assert_eq!(there.rerun.len(), back.rerun.len());
        prop_assert_eq!(there.is_empty(), old.digest() == new.digest());
        prop_assert!(diff(&old, &old).is_empty());
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,200}") {
        let _ = parse(text.as_bytes(), Format::Auto, OtherKinds::Ignore);
        let _ = parse(text.as_bytes(), Format::Yaml, OtherKinds::Refuse);
    }

    #[test]
    fn a_damaged_manifest_does_not_make_the_reader_panic(
        manifest in canonical_manifests(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut text = manifest.to_string().into_bytes();
        let index = at.index(text.len());
        text[index] = byte;
        for format in [Format::Auto, Format::Json, Format::Yaml] {
            if let Err(problems) = parse(&text, format, OtherKinds::Refuse) {
                prop_assert!(!problems.is_empty());
            }
        }
    }
}
