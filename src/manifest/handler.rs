//! `onFailure` and `onSuccess`: what is said, to whom, and which labels are set. Part of [`super::dialect`].
//!
//! Whether a channel or a domain may be used is the operator's configuration to say; here only the form is judged.

use super::{
    Handler, Reason,
    dialect::extension,
    fields::{Findings, Path},
    limits::{CHANNEL_BYTES_MAX, EMAIL_BYTES_MAX, MESSAGE_BYTES_MAX, MESSAGES_MAX, RECIPIENTS_MAX},
    source::Node,
    spelling::quoted,
};

/// A handler with these actions; `path` is the handler's own.
pub(super) fn handler<Action: Copy + Default>(
    findings: &mut Findings,
    node: &Node<'_>,
    path: &Path<'_>,
    actions: &[(&str, Action)],
) -> Handler<Action> {
    let mut handler = Handler::default();
    let Some(entries) = findings.object(node, path, "a handler") else { return handler };
    let fields = findings.fields(entries, path, &["action", "spec"]);
    for entry in fields.extensions {
        extension(findings, &mut handler.extensions, "", entry, path);
    }
    let [action, spec] = fields.known;
    if let Some(entry) = action {
        let chosen = findings.choice(&entry.value, &path.key(entry.key), "`action`", actions);
        handler.action = chosen.unwrap_or_default();
    }
    let Some(spec) = spec else { return handler };
    let path = path.key(spec.key);
    let Some(entries) = findings.object(&spec.value, &path, "the `spec` of a handler") else { return handler };
    let fields = findings.fields(entries, &path, &["message", "notify", "labels"]);
    for entry in fields.extensions {
        extension(findings, &mut handler.extensions, "spec/", entry, &path);
    }
    let [message, notify, labels] = fields.known;
    if let Some(entry) = message {
        handler.messages = messages(findings, &entry.value, &path.key(entry.key));
    }
    if let Some(entry) = labels {
        handler.labels = findings.labels(&entry.value, &path.key(entry.key), "`labels`");
    }
    if let Some(entry) = notify {
        notification(findings, &entry.value, &path.key(entry.key), &mut handler);
    }
    handler
}

fn messages(findings: &mut Findings, node: &Node<'_>, path: &Path<'_>) -> Vec<String> {
    let texts = findings.texts(node, path, "`message`");
    if texts.len() > MESSAGES_MAX {
        let message = format!("`message` has {} lines, more than {MESSAGES_MAX}", texts.len());
        findings.add(node.at, path, Reason::TooLarge, message);
        return Vec::new();
    }
    for (text, node, _) in &texts {
        if text.len() > MESSAGE_BYTES_MAX {
            let message = format!("a line of `message` has {} bytes, more than {MESSAGE_BYTES_MAX}", text.len());
            findings.add(node.at, path, Reason::TooLarge, message);
        }
    }
    texts.into_iter().map(|(text, ..)| text.to_owned()).collect()
}

fn notification<Action>(findings: &mut Findings, node: &Node<'_>, path: &Path<'_>, handler: &mut Handler<Action>) {
    let Some(entries) = findings.object(node, path, "`notify`") else { return };
    let fields = findings.fields(entries, path, &["email", "slack"]);
    for entry in fields.extensions {
        extension(findings, &mut handler.extensions, "spec/notify/", entry, path);
    }
    let [email, slack] = fields.known;
    if let Some(entry) = email {
        let form =
            Recipients { what: "`email`", fault: email_fault, hint: "an address is `name@domain`, at most 320 bytes" };
        handler.email = recipients(findings, &entry.value, &path.key(entry.key), &form);
    }
    if let Some(entry) = slack {
        let form = Recipients {
            what: "`slack`",
            fault: channel_fault,
            hint: "name a channel; the operator's configuration maps it to a webhook",
        };
        handler.slack = recipients(findings, &entry.value, &path.key(entry.key), &form);
    }
}

/// How the recipients of one medium are judged.
struct Recipients {
    what: &'static str,
    fault: fn(&str) -> Option<&'static str>,
    hint: &'static str,
}

fn recipients(findings: &mut Findings, node: &Node<'_>, path: &Path<'_>, form: &Recipients) -> Vec<String> {
    let texts = findings.texts(node, path, form.what);
    if texts.len() > RECIPIENTS_MAX {
        let message = format!("{} has {} entries, more than {RECIPIENTS_MAX}", form.what, texts.len());
        findings.add(node.at, path, Reason::TooLarge, message);
        return Vec::new();
    }
    for (text, node, index) in &texts {
        if let Some(fault) = (form.fault)(text) {
            let message = format!("{} {} {fault}", form.what, quoted(text));
            let entry_path = index.map_or(*path, |index| path.index(index));
            findings.add_hinted(node.at, &entry_path, Reason::BadValue, message, form.hint);
        }
    }
    texts.into_iter().map(|(text, ..)| text.to_owned()).collect()
}

fn email_fault(text: &str) -> Option<&'static str> {
    let parts = text.split_once('@').filter(|(name, domain)| !name.is_empty() && !domain.is_empty());
    let one_at = parts.is_some_and(|(_, domain)| !domain.contains('@'));
    let plain = text.len() <= EMAIL_BYTES_MAX && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    // A comma or an angle bracket would make several recipients of one, or smuggle in a header.
    let single = !text.contains([',', ';', '<', '>', '"']);
    if one_at && plain && single { None } else { Some("is no address") }
}

fn channel_fault(text: &str) -> Option<&'static str> {
    if text.contains("://") || text.contains("hooks.slack.com") {
        return Some("is a URL");
    }
    let plain = !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if plain && !text.is_empty() && text.len() <= CHANNEL_BYTES_MAX { None } else { Some("is no channel name") }
}
