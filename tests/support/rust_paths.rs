//! The paths that a Rust source file mentions, for the test of the layers.
//!
//! A reader of tokens and not of grammar: comments, strings and characters are dropped, `a::b::c` and `a::{b, c::d}`
//! are paths, and braces after `mod name` count, since `super` depends on them. That is all the layers need.

/// A path of at least two segments, or a single name where a crate is imported; `super` and `self` are resolved as far
/// as they lead to the crate's root, which is then called `crate`, as is our own crate's name.
pub struct Mention {
    pub line: usize,
    pub path: Vec<String>,
}

impl Mention {
    pub fn segments(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }
}

/// All paths in `text`, a file whose module is `depth` steps below the crate's root.
pub fn mentions(text: &str, depth: usize) -> Vec<Mention> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    let mut scopes: Vec<Scope> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let token = tokens[at].text.as_str();
        match token {
            "{" => {
                let module = at >= 2 && tokens[at - 2].text == "mod";
                scopes.push(if module { Scope::Module } else { Scope::Block });
            }
            "}" => {
                scopes.pop();
            }
            _ if is_name(token) => {
                let imported = at >= 1 && (tokens[at - 1].text == "use" || tokens[at - 1].text == "crate");
                let inner = scopes.iter().filter(|scope| matches!(scope, Scope::Module)).count();
                let first = found.len();
                at = read_path(&tokens, at, &mut Vec::new(), &mut found);
                let kept = found.split_off(first).into_iter().filter(|mention| imported || mention.path.len() > 1);
                found.extend(kept.map(|mention| resolved(mention, depth + inner)));
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

enum Scope {
    Module,
    Block,
}

struct Token {
    line: usize,
    text: String,
}

/// Reads one path, or the tree of a grouped import, from the name at `at`; gives the place behind it.
fn read_path(tokens: &[Token], mut at: usize, prefix: &mut Vec<String>, found: &mut Vec<Mention>) -> usize {
    let line = tokens[at].line;
    let whole = prefix.len();
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    prefix.push(tokens[at].text.clone());
    at += 1;
    while text(at) == "::" && is_name(text(at + 1)) {
        prefix.push(text(at + 1).to_owned());
        at += 2;
    }
    if text(at) == "::" && text(at + 1) == "{" {
        at += 2;
        while at < tokens.len() && text(at) != "}" {
            at = if is_name(text(at)) && text(at - 1) != "as" { read_path(tokens, at, prefix, found) } else { at + 1 };
        }
        at += 1;
    } else {
        found.push(Mention { line, path: prefix.clone() });
    }
    prefix.truncate(whole);
    at
}

/// Turns supers that lead to the root, and our crate's own name, into `crate`.
fn resolved(mut mention: Mention, depth: usize) -> Mention {
    if mention.path[0] == "self" && mention.path.len() > 1 {
        mention.path.remove(0);
    }
    let supers = mention.path.iter().take_while(|segment| *segment == "super").count();
    if supers > 0 && supers == depth {
        mention.path.splice(..supers, ["crate".to_owned()]);
    } else if mention.path[0] == "pmp" {
        "crate".clone_into(&mut mention.path[0]);
    }
    mention
}

fn is_name(text: &str) -> bool {
    let name = text.chars().next().is_some_and(|first| first.is_alphabetic() || first == '_');
    name && !["use", "pub", "mod", "fn", "let", "as", "extern", "in"].contains(&text)
}

/// Names, `::` and single signs, without comments, strings, characters and lifetimes.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let rest = &chars[at..];
        let length = dropped(rest).unwrap_or_else(|| {
            let name = rest.iter().take_while(|c| c.is_alphanumeric() || **c == '_').count();
            let length = if rest.starts_with(&[':', ':']) { 2 } else { name.max(1) };
            tokens.push(Token { line, text: rest[..length].iter().collect() });
            length
        });
        line += rest[..length].iter().filter(|c| **c == '\n').count();
        at += length;
    }
    tokens
}

/// The length of what is no token at the beginning of `rest`, if it begins so.
fn dropped(rest: &[char]) -> Option<usize> {
    let to_end = |from: usize, end: &[char]| {
        let found = rest[from..].windows(end.len()).position(|window| window == end);
        found.map_or(rest.len(), |at| from + at + end.len())
    };
    match rest {
        [c, ..] if c.is_whitespace() => Some(1),
        ['/', '/', ..] => Some(to_end(2, &['\n'])),
        ['/', '*', ..] => Some(to_end(2, &['*', '/'])),
        ['r', '"' | '#', ..] | ['b', 'r', '"' | '#', ..] => raw_string(rest),
        ['"', ..] => Some(quoted(rest, '"')),
        ['b', '"', ..] => Some(1 + quoted(&rest[1..], '"')),
        // A lifetime has no closing quote behind its first character.
        ['\'', '\\', ..] => Some(quoted(rest, '\'')),
        ['\'', _, '\'', ..] => Some(3),
        ['\'', ..] => Some(1 + rest[1..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count()),
        _ => None,
    }
}

fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// `r"..."`, `r#"..."#` and so on; `None` for a raw name such as `r#type`.
fn raw_string(rest: &[char]) -> Option<usize> {
    let start = if rest[0] == 'b' { 2 } else { 1 };
    let hashes = rest[start..].iter().take_while(|c| **c == '#').count();
    if rest.get(start + hashes) != Some(&'"') {
        return None;
    }
    let mut end = vec!['"'];
    end.extend(std::iter::repeat_n('#', hashes));
    let from = start + hashes + 1;
    let found = rest[from..].windows(end.len()).position(|window| window == end);
    Some(found.map_or(rest.len(), |at| from + at + end.len()))
}
