//! The bad inputs: a list by hand, and many more from a seed, the same for ever.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::super::{Front, client::Call, phase};

/// A small generator of its own, so that the inputs are the same for ever (PCG-XSH-RR).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u32 {
        let old = self.0;
        self.0 = old.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = u32::try_from((((old >> 18) ^ old) >> 27) & 0xffff_ffff).unwrap();
        mixed.rotate_right(u32::try_from(old >> 59).unwrap())
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    fn of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    fn noise(&mut self, length_max: usize) -> Vec<u8> {
        let length = 1 + self.below(length_max);
        (0..length).map(|_| u8::try_from(self.next() & 0xff).unwrap()).collect()
    }
}

/// An input: as bytes on the wire, and what it is.
pub struct Input {
    pub what: String,
    pub bytes: Vec<u8>,
}

struct Inputs {
    dice: Dice,
    base: Call,
    list: Vec<Input>,
}

/// All of them: some 2,100.
pub fn inputs(front: &Front) -> Vec<Input> {
    let base = front.call("POST", "/plan?session=bad");
    let mut inputs = Inputs { dice: Dice(20_260_101), base, list: Vec::new() };
    inputs.by_hand();
    inputs.nested();
    inputs.unfolding();
    inputs.large();
    for n in 0..1_200 {
        inputs.manifest(n);
    }
    for n in 0..700 {
        inputs.request(n);
    }
    inputs.commands();
    inputs.list
}

const JSON_BY_HAND: [&str; 44] = [
    "",
    " ",
    "null",
    "true",
    "1",
    "\"a\"",
    "{}",
    "[",
    "]",
    "[[]]",
    "[null, 1]",
    "[{]",
    "[}",
    "[1]",
    "[\"a\"]",
    "{\"a\":1}",
    "[{}]x",
    "[]]",
    "[,]",
    "[{\"kind\":\"Phase\",\"id\":\"a\"},]",
    "// no\n[]",
    "['a']",
    "[NaN]",
    "[Infinity]",
    "[01]",
    "[{\"kind\":\"Phase\"}]",
    "[{\"id\":\"a\"}]",
    "[{\"kind\":\"phase\",\"id\":\"\"}]",
    "[{\"kind\":\"Phase\",\"id\":null}]",
    "[{\"kind\":\"Phase\",\"id\":\"a\",\"ID\":\"b\"}]",
    "[{\"kind\":\"Phase\",\"Kind\":\"Phase\",\"id\":\"a\"}]",
    "[{\"kind\":\"Phase\",\"id\":\"a\",\"spec\":{\"wait_for\":[],\"waitFor\":[]}}]",
    "[{\"kind\":\"Phase\",\"id\":\"a\",\"spec\":{\"waitFor\":[\"a\"]}}]",
    "[{\"kind\":\"Phase\",\"id\":\"a\"},{\"kind\":\"Phase\",\"id\":\"a\"}]",
    "{\"kind\":\"PhaseManifest\"}",
    "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"spec\":{}}",
    "{\"apiVersion\":\"pmp.dev/v1alpha1\",\"kind\":\"PhaseManifest\",\"spec\":{\"phases\":{\"a\":1}}}",
    "{\"apiVersion\":\"pmp.dev/v1alpha1\",\"kind\":\"PhaseManifest\",\"spec\":{\"phases\":[],\"phases\":[]}}",
    "{\"apiVersion\":\"pmp.dev/v1alpha1\",\"kind\":\"PhaseManifest\",\"metadata\":{\"name\":\"../x\"},\"spec\":{\"phases\":[]}}",
    "{\"apiVersion\":\"pmp.dev/v1alpha1\",\"kind\":\"PhaseManifest\",\"metadata\":{\"namespace\":\"other\"},\"spec\":{\"phases\":[]}}",
    "{\"apiVersion\":\"pmp.dev/v1alpha1\",\"kind\":\"PhaseManifest\",\"metadata\":{\"labels\":{\"a\":1}},\"spec\":{\"phases\":[]}}",
    "\u{feff}",
    "[\u{0}]",
    "[{\"kind\":\"Phase\",\"id\":\"\\ud800\"}]",
];

const YAML_BY_HAND: [&str; 15] = [
    "&a [*a]",
    "*a",
    "!!python/object:os.system [1]",
    "- - - a",
    "a: b",
    "---\n[]\n---\n[]",
    "{a: &a 1, <<: *a}",
    "- kind: Phase\n  id: a\n  id: b",
    "%YAML 9.9\n---\n[1]",
    "\t- a",
    "? [a]\n: b",
    "- !!binary x",
    "'",
    "[}",
    "- kind: Phase\n id: a",
];

/// A value of another type than the field wants, or of no sense in it.
const NONSENSE: [&str; 14] = [
    "-1",
    "0.5",
    "1e400",
    "-99999999999999999999",
    "18446744073709551616",
    "true",
    "[[]]",
    "[1]",
    "{\"a\":1}",
    "{\"x\":{\"y\":{}}}",
    "\"\\u0000\"",
    "\"-5m\"",
    "\"1e99\"",
    "[null, 3]",
];

/// Where it is put.
const FIELDS: [&str; 9] = [
    "\"retry\":{\"maxAttempts\":$}",
    "\"waitFor\":{\"timeout\":$}",
    "\"waitFor\":{\"phases\":$}",
    "\"selector\":{\"matchLabels\":$}",
    "\"instanceMode\":$",
    "\"onFailure\":{\"action\":$}",
    "\"x-timeouts\":{\"attempt\":$}",
    "\"x-backoff\":{\"factor\":$}",
    "\"description\":$",
];

/// One field in two spellings.
const TWINS: [&str; 6] = [
    "\"match_labels\":{},\"matchLabels\":{}",
    "\"retry\":{},\"Retry\":{}",
    "\"WaitFor\":[],\"wait_for\":[]",
    "\"onFailure\":{},\"on_failure\":{}",
    "\"InstanceMode\":\"immediate\",\"instance_mode\":\"onUse\"",
    "\"retry\":{\"max_attempts\":1,\"maxAttempts\":1}",
];

const GOOD: &str = "[{\"kind\":\"Phase\",\"id\":\"a\",\"spec\":{\"retry\":{\"maxAttempts\":3},\"x-a\":[1,\"ü\",{}]}}]";

const HOST: &str = "Host: localhost\r\nConnection: close\r\n";

fn with_spec(fields: &str) -> String {
    format!("[{{\"kind\":\"Phase\",\"id\":\"a\",\"spec\":{{{fields}}}}}]")
}

impl Inputs {
    fn body(&mut self, what: &str, kind: &str, body: impl Into<Vec<u8>>) {
        let bytes = self.base.clone().body(kind, body).bytes();
        self.list.push(Input { what: what.to_owned(), bytes });
    }

    fn json(&mut self, what: &str, text: impl Into<Vec<u8>>) {
        self.body(what, "application/json", text);
    }

    fn yaml(&mut self, what: &str, text: impl Into<Vec<u8>>) {
        self.body(what, "application/yaml", text);
    }

    fn wire(&mut self, what: &str, bytes: impl Into<Vec<u8>>) {
        self.list.push(Input { what: what.to_owned(), bytes: bytes.into() });
    }

    fn by_hand(&mut self) {
        for text in JSON_BY_HAND {
            self.json(&format!("by hand: {text}"), text);
        }
        for text in YAML_BY_HAND {
            self.yaml(&format!("by hand, yaml: {text}"), text);
        }
    }

    fn nested(&mut self) {
        for depth in [65, 100, 1_000, 10_000, 100_000] {
            self.json(&format!("{depth} lists"), "[".repeat(depth));
            self.json(&format!("{depth} closed lists"), format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
            self.json(&format!("{depth} objects"), "{\"a\":".repeat(depth));
            let deep = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
            self.json("a deep extension", with_spec(&format!("\"x-a\":{deep}")));
            self.yaml(&format!("{depth} yaml lists"), "- ".repeat(depth));
            self.yaml(&format!("{depth} yaml flows"), "[".repeat(depth));
        }
    }

    fn unfolding(&mut self) {
        let bomb = |levels: usize| {
            let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
            for n in 1..levels {
                let again = format!("*a{}, ", n - 1).repeat(9);
                writeln!(text, "a{n}: &a{n} [{again}]").expect("a string takes every text");
            }
            text
        };
        for levels in 6..14 {
            self.yaml("a yaml bomb", bomb(levels));
        }
        self.yaml("a yaml bomb behind a long comment", format!("#{}\n{}", "#".repeat(900_000), bomb(9)));
        let text = format!("- &a \"{}\"\n{}", "x".repeat(100_000), "- *a\n".repeat(100_000));
        self.yaml("a long text, many times: a bomb", text);
    }

    fn large(&mut self) {
        self.json("many of nothing", format!("[{}1]", "null,".repeat(200_000)));
        self.json("a long number", format!("[{}]", "9".repeat(500_000)));
        self.json("a long id", json!([phase(&"x".repeat(300_000), &[])]).to_string());
        self.json("many problems", format!("[{}1]", "1,".repeat(400_000)));
        let lost: Vec<Value> = (0..5_000).map(|n| phase(&format!("p{n}"), &[&format!("q{n}")])).collect();
        self.json("many unknown waits", json!(lost).to_string());
        let ring: Vec<Value> =
            (0..5_000).map(|n| phase(&format!("p{n}"), &[&format!("p{}", (n + 1) % 5_000)])).collect();
        self.json("a cycle of many", json!(ring).to_string());
    }

    /// Casing twins, wrong types and numbers out of range, bad UTF-8, broken ends, noise.
    fn manifest(&mut self, n: usize) {
        match n % 6 {
            0 => {
                let twins = self.dice.of(&TWINS);
                self.json("casing twins", with_spec(&format!("{twins},\"x-n\":{n}")));
            }
            1 => {
                let spec = self.dice.of(&FIELDS).replace('$', self.dice.of(&NONSENSE));
                // Whatever fits by chance, this does not.
                self.json(&format!("nonsense: {spec}"), with_spec(&format!("{spec},\"no-such-field\":{n}")));
            }
            2 => {
                let mut bytes = GOOD.as_bytes().to_vec();
                let bad: [&[u8]; 5] = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"];
                let (at, bad) = (self.dice.below(bytes.len()), bad[self.dice.below(bad.len())]);
                // Inside of a character it might complete another one.
                let at = GOOD.floor_char_boundary(at);
                bytes.splice(at..at, bad.iter().copied());
                let kind = if n.is_multiple_of(4) { "application/json" } else { "application/yaml" };
                self.body("bad utf-8", kind, bytes);
            }
            3 => {
                let end = GOOD.floor_char_boundary(1 + self.dice.below(GOOD.len() - 1));
                self.json("a broken end", &GOOD[..end]);
            }
            4 => {
                let noise = [self.dice.noise(200), b"\xff".to_vec()].concat();
                self.json("noise", noise);
            }
            _ => {
                let id = self.dice.of(&["\\u0000", "\\u202e", "\\n", "\\u200b", "", "\\ufeff"]);
                self.json(&format!("odd id {id}"), format!("[{{\"kind\":\"Phase\",\"id\":\"{id}\",\"x-n\":{n}}}]"));
            }
        }
    }

    /// Bad bodies of what is no manifest.
    fn commands(&mut self) {
        let odd = [
            "{\"command\":3}",
            "{\"command\":\"\"}",
            "{\"command\":\"explode\"}",
            "{\"command\":\"x-retry\",\"x-phaseId\":[]}",
        ];
        for text in JSON_BY_HAND.iter().chain(&odd) {
            self.post("/control?session=nobody", text.as_bytes());
        }
        for length in [10_000, 900_000] {
            self.post("/control?session=nobody", " ".repeat(length).as_bytes());
            self.post("/apply?session=nobody", " ".repeat(length).as_bytes());
            self.post("/phases/a/skip?session=nobody", " ".repeat(length).as_bytes());
        }
        for query in
            ["session=nobody&digest=", "session=nobody&digest=sha256:1", "session=", "session=a.b", "session=nobody"]
        {
            let noise = self.dice.noise(900);
            self.post(&format!("/apply?{query}"), &noise);
        }
    }

    fn post(&mut self, target: &str, body: &[u8]) {
        let head = format!("POST {target} HTTP/1.1\r\n{HOST}Content-Type: application/json\r\n");
        let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
        self.wire(&format!("a body for {target}"), [head.as_bytes(), body].concat());
    }

    /// Odd ids in paths and parameters, odd headers, and what is no HTTP at all.
    fn request(&mut self, n: usize) {
        match n % 8 {
            0 => {
                let odd = ["*", ">", "a%20b", "%00", "%ff", "%2e%2e", "ü", "a/b", "..%2f", "%F0%9F%9A%80", "a%0d%0ab"];
                let (id, parameter) = (self.dice.of(&odd), self.dice.of(&["session", "namespace"]));
                let path = self.dice.of(&["status", "diff", "plan", "logs", "phases/a"]);
                self.wire("an odd session", format!("GET /{path}?{parameter}={id}.{n} HTTP/1.1\r\n{HOST}\r\n"));
            }
            1 => {
                let odd = ["%00", "%ff", "%0a", "%e2%80%ae", "%c0%af", "nobody", "..", "%2e%2e%2f", "%25", "*"];
                let id = self.dice.of(&odd).repeat(1 + self.dice.below(100));
                let verb = self.dice.of(&["retry", "skip", "use", "complete", "explode"]);
                let line = format!("POST /phases/{id}/{verb}?session=nobody HTTP/1.1");
                self.wire("an odd phase", format!("{line}\r\n{HOST}Content-Length: 0\r\n\r\n"));
            }
            2 => self.wire("an unknown parameter", format!("GET /status?session=s&x{n}=1 HTTP/1.1\r\n{HOST}\r\n")),
            3 => {
                let kind = self.dice.of(&[
                    "text/plain",
                    "application/xml",
                    "multipart/form-data; boundary=x",
                    "application/json; charset=utf-16",
                    "*/*",
                    "a",
                    "application/vnd.phase-manifest+json; version=2",
                ]);
                self.body(&format!("a body of {kind}"), kind, "[]");
            }
            4 => {
                let noise = [self.dice.noise(300), b"\r\n\r\n".to_vec()].concat();
                self.wire("no http", noise);
            }
            5 => {
                let line = self.dice.of(&[
                    "GET /status",
                    "GET  /status HTTP/1.1",
                    "GET /status HTTP/3.0",
                    "get / HTTP/1.1 x",
                    "\0",
                    "GET http://[ HTTP/1.1",
                    "PRI * HTTP/2.0",
                    "GET /\u{fffd} HTTP/1.1",
                    "CONNECT a:1 HTTP/1.1",
                ]);
                self.wire(&format!("request line {line:?}"), format!("{line}\r\n{HOST}\r\n"));
            }
            6 => {
                let header = format!("X-Long: {}\r\n", "x".repeat((1 + self.dice.below(4)) * 60_000));
                self.wire("a large header", format!("GET /nothing HTTP/1.1\r\n{HOST}{header}\r\n"));
            }
            _ => {
                let header = self.dice.of(&[
                    "Content-Length: -1",
                    "Content-Length: 5\r\nContent-Length: 6",
                    "Transfer-Encoding: gzip, chunked, x",
                    "Content-Length: 99999999999999999999999",
                    "Transfer-Encoding: chunked\r\nContent-Length: 3\r\nX: y",
                    "Content-Encoding: gzip\r\nContent-Length: 2",
                ]);
                let head = format!("POST /plan HTTP/1.1\r\n{HOST}Content-Type: application/json\r\n{header}");
                self.wire(&format!("framing: {header:?}"), format!("{head}\r\n\r\n[1"));
            }
        }
    }
}
