//! Two thousand bad inputs, written by hand and generated from a seed: every one is a 4xx problem or a closed connection,
//! and none leaves anything behind.

use std::fs;

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    Front,
    client::{Answer, Call, raw},
    phase,
};

/// What the process may have grown by at the end: allocators keep what was used once.
const GROWTH_KIB_MAX: u64 = 64 << 10;
/// What it may have had at any moment.
const PEAK_KIB_MAX: u64 = 500 << 10;

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

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// An input: as bytes on the wire, and what it is.
struct Input {
    what: String,
    bytes: Vec<u8>,
}

struct Inputs {
    dice: Dice,
    base: Call,
    list: Vec<Input>,
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
}

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

/// Fields of a spec that none of these fits.
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

fn by_hand(inputs: &mut Inputs) {
    for text in [
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
        "{\"apiVersion\":\"pmp.dev/v1alpha1\",\"kind\":\"PhaseManifest\",\"spec\":{\"phases\":{}}}",
        "{\"apiVersion\":\"pmp.dev/v1alpha1\",\"kind\":\"PhaseManifest\",\"spec\":{\"phases\":[],\"phases\":[]}}",
        "{\"apiVersion\":\"pmp.dev/v1alpha1\",\"kind\":\"PhaseManifest\",\"metadata\":{\"name\":\"../x\"},\"spec\":{\"phases\":[]}}",
        "{\"apiVersion\":\"pmp.dev/v1alpha1\",\"kind\":\"PhaseManifest\",\"metadata\":{\"name\":\"a\",\"namespace\":\"other\"},\"spec\":{\"phases\":[]}}",
        "{\"apiVersion\":\"pmp.dev/v1alpha1\",\"kind\":\"PhaseManifest\",\"metadata\":{\"labels\":{\"a\":1}},\"spec\":{\"phases\":[]}}",
        "\u{feff}",
        "\u{0}",
        "[\u{0}]",
        "[{\"kind\":\"Phase\",\"id\":\"\\ud800\"}]",
    ] {
        inputs.json(&format!("by hand: {text}"), text);
    }
    for text in [
        "&a [*a]",
        "*a",
        "!!python/object:os.system []",
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
    ] {
        inputs.yaml(&format!("by hand, yaml: {text}"), text);
    }
}

fn nested(inputs: &mut Inputs) {
    for depth in [65, 100, 1_000, 10_000, 100_000] {
        inputs.json(&format!("{depth} lists"), "[".repeat(depth));
        inputs.json(&format!("{depth} closed lists"), format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
        inputs.json(&format!("{depth} objects"), "{\"a\":".repeat(depth));
        let deep = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        inputs.json("a deep extension", format!("[{{\"kind\":\"Phase\",\"id\":\"a\",\"spec\":{{\"x-a\":{deep}}}}}]"));
        inputs.yaml(&format!("{depth} yaml lists"), "- ".repeat(depth));
        inputs.yaml(&format!("{depth} yaml flows"), "[".repeat(depth));
    }
    for levels in 6..14 {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..levels {
            let again = format!("*a{}, ", n - 1).repeat(9);
            text.push_str(&format!("a{n}: &a{n} [{again}]\n"));
        }
        inputs.yaml("a yaml bomb", text);
    }
    inputs.yaml("a long text, many times", format!("- &a \"{}\"\n{}", "x".repeat(100_000), "- *a\n".repeat(100_000)));
    inputs.yaml("a padded yaml bomb", format!("{}\n{}", "#".repeat(900_000), "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f]\n"));
    inputs.json("a million of nothing", format!("[{}1]", "null,".repeat(200_000)));
    inputs.json("a long number", format!("[{}]", "9".repeat(500_000)));
    inputs.json("a long id", json!([phase(&"x".repeat(300_000), &[])]).to_string());
    inputs.json("many problems", format!("[{}1]", "1,".repeat(400_000)));
    let many: Vec<Value> = (0..5_000).map(|n| phase(&format!("p{n}"), &[&format!("q{n}")])).collect();
    inputs.json("many unknown waits", json!(many).to_string());
    let ring: Vec<Value> = (0..5_000).map(|n| phase(&format!("p{n}"), &[&format!("p{}", (n + 1) % 5_000)])).collect();
    inputs.json("a long cycle", json!(ring).to_string());
}

/// Casing twins, wrong types and numbers out of range in an otherwise good manifest.
fn generated_manifests(inputs: &mut Inputs, count: usize) {
    for _ in 0..count {
        let good = "[{\"kind\":\"Phase\",\"id\":\"a\",\"spec\":{\"retry\":{\"maxAttempts\":3},\"waitFor\":{\"phases\":[]},\"x-a\":[1,\"ü\",{}]}}]";
        match inputs.dice.below(6) {
            0 => {
                let twins = [
                    ("match_labels", "matchLabels"),
                    ("max_attempts", "maxAttempts"),
                    ("WaitFor", "wait_for"),
                    ("Retry", "retry"),
                    ("onFailure", "on_failure"),
                    ("InstanceMode", "instance_mode"),
                ];
                let (one, other) = *inputs.dice.of(&twins);
                inputs.json(
                    "casing twins",
                    format!("[{{\"kind\":\"Phase\",\"id\":\"a\",\"spec\":{{\"{one}\":{{}},\"{other}\":{{}}}}}}]"),
                );
            }
            1 => {
                let (field, value) = (*inputs.dice.of(&FIELDS), *inputs.dice.of(&NONSENSE));
                // A few of them are the right type for that field.
                let fits = matches!((field.contains("description"), value.starts_with('"')), (true, true))
                    || field.contains("matchLabels") && value.starts_with("{\"a\"")
                    || field.contains("factor") && ["true"].contains(&value);
                let field = if fits { "\"retry\":{\"maxAttempts\":$}" } else { field };
                let spec = field.replace('$', value);
                inputs.json(
                    &format!("nonsense: {spec}"),
                    format!("[{{\"kind\":\"Phase\",\"id\":\"a\",\"spec\":{{{spec},\"no-such-field\":1}}}}]"),
                );
            }
            2 => {
                let mut bytes = good.as_bytes().to_vec();
                let bad: [&[u8]; 5] = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80"];
                let (at, bad) = (inputs.dice.below(bytes.len()), *inputs.dice.of(&bad));
                bytes.splice(at..at, bad.iter().copied());
                if inputs.dice.below(2) == 0 {
                    inputs.json("bad utf-8", bytes)
                } else {
                    inputs.yaml("bad utf-8, yaml", bytes)
                }
            }
            3 => {
                let mut end = 1 + inputs.dice.below(good.len() - 1);
                while !good.is_char_boundary(end) {
                    end -= 1;
                }
                inputs.json("a broken end", &good[..end]);
            }
            4 => {
                let length = 1 + inputs.dice.below(200);
                let noise: Vec<u8> = (0..length).map(|_| u8::try_from(inputs.dice.next() & 0xff).unwrap()).collect();
                inputs.json("noise", [noise, b"\xff".to_vec()].concat());
            }
            _ => {
                let odd = ["\\u0000", "\\u202e", "\\n", "\\u200b", "", "\\ufeff"];
                let id = *inputs.dice.of(&odd);
                inputs.json(&format!("odd id {id}"), format!("[{{\"kind\":\"Phase\",\"id\":\"{id}\"}}]"));
            }
        }
    }
}

/// Odd ids in paths and parameters, odd headers, and what is no HTTP at all.
fn generated_requests(inputs: &mut Inputs, count: usize) {
    let host = "Host: localhost\r\nConnection: close\r\n";
    for _ in 0..count {
        match inputs.dice.below(8) {
            0 => {
                let odd =
                    ["a.b", "*", ">", "a%20b", "%00", "%ff", "%2e%2e", "ü", "a/b", "..%2f", "%F0%9F%9A%80", "a%0d%0ab"];
                let (id, n) = (*inputs.dice.of(&odd), inputs.dice.next());
                let parameter = *inputs.dice.of(&["session", "namespace"]);
                let path = *inputs.dice.of(&["status", "diff", "plan", "logs", "phases/a"]);
                inputs.wire("an odd session", format!("GET /{path}?{parameter}={id}.{n} HTTP/1.1\r\n{host}\r\n"));
            }
            1 => {
                let odd = [
                    "%00",
                    "%ff",
                    "%0a",
                    "%e2%80%ae",
                    "%c0%af",
                    "nobody",
                    "..",
                    "%2e%2e%2f",
                    "%25",
                    "*",
                    &"x".repeat(300),
                ]
                .map(str::to_owned);
                let id = inputs.dice.of(&odd).clone();
                let verb = *inputs.dice.of(&["retry", "skip", "use", "complete", "explode"]);
                inputs.wire(
                    "an odd phase",
                    format!("POST /phases/{id}/{verb}?session=nobody HTTP/1.1\r\n{host}Content-Length: 0\r\n\r\n"),
                );
            }
            2 => {
                let n = inputs.dice.next();
                inputs.wire("an unknown parameter", format!("GET /status?session=s&x{n}=1 HTTP/1.1\r\n{host}\r\n"));
            }
            3 => {
                let types = [
                    "text/plain",
                    "application/xml",
                    "multipart/form-data; boundary=x",
                    "application/json; charset=utf-16",
                    "*/*",
                    "a",
                    "application/vnd.phase-manifest+json; version=2",
                ];
                let kind = *inputs.dice.of(&types);
                inputs.body(&format!("a body of {kind}"), kind, "[]");
            }
            4 => {
                let length = 1 + inputs.dice.below(300);
                let noise: Vec<u8> = (0..length).map(|_| u8::try_from(inputs.dice.next() & 0xff).unwrap()).collect();
                inputs.wire("no http", [noise, b"\r\n\r\n".to_vec()].concat());
            }
            5 => {
                let odd = [
                    "GET /status",
                    "GET  /status HTTP/1.1",
                    "GET /status HTTP/3.0",
                    "get / HTTP/1.1 x",
                    "\0",
                    "GET http://[ HTTP/1.1",
                    "PRI * HTTP/2.0",
                    "GET /\u{fffd} HTTP/1.1",
                    "CONNECT a:1 HTTP/1.1",
                ];
                let line = *inputs.dice.of(&odd);
                inputs.wire(&format!("request line {line:?}"), format!("{line}\r\n{host}\r\n"));
            }
            6 => {
                let size = 1 + inputs.dice.below(4);
                let header = format!("X-Long: {}\r\n", "x".repeat(size * 60_000));
                inputs.wire("a large header", format!("GET /nothing HTTP/1.1\r\n{host}{header}\r\n"));
            }
            _ => {
                let odd = [
                    "Content-Length: -1",
                    "Content-Length: 5\r\nContent-Length: 6",
                    "Transfer-Encoding: gzip, chunked, x",
                    "Content-Length: 99999999999999999999999",
                    "Transfer-Encoding: chunked\r\nContent-Length: 3\r\nX: y",
                    "Content-Encoding: gzip\r\nContent-Length: 2",
                ];
                let header = *inputs.dice.of(&odd);
                inputs.wire(
                    &format!("framing: {header:?}"),
                    format!("POST /plan HTTP/1.1\r\n{host}Content-Type: application/json\r\n{header}\r\n\r\n[1"),
                );
            }
        }
    }
}

fn inputs(front: &Front) -> Vec<Input> {
    let base = front.call("POST", "/plan?session=bad");
    let mut inputs = Inputs { dice: Dice(20_260_101), base, list: Vec::new() };
    by_hand(&mut inputs);
    nested(&mut inputs);
    generated_manifests(&mut inputs, 1_200);
    generated_requests(&mut inputs, 700);
    inputs.list
}

fn is_refused(answer: &Option<Answer>) -> bool {
    let Some(answer) = answer else { return true };
    // What is no HTTP is answered by the parser, which knows no problems.
    let is_problem = answer.header("content-type") == Some("application/problem+json") || answer.body.is_empty();
    (400..500).contains(&answer.code) && is_problem
}

fn memory_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn two_thousand_bad_inputs_are_each_refused_and_leave_nothing_behind() {
    let front = Front::with("bad", &["--gateway-peer-rate", "100000", "--gateway-rate", "100000"]).await;
    let inputs = inputs(&front);
    assert!(inputs.len() >= 2_000, "{}", inputs.len());
    let pid = front.operator.pid();
    // What any load leaves in an allocator is no leak: measured from after the worst of them.
    for input in inputs.iter().filter(|input| input.what.contains("bomb") || input.what.contains("many")) {
        raw(front.address, &input.bytes).await;
    }
    let before = memory_kib(pid, "VmRSS");
    let mut open = Vec::new();
    for (n, input) in inputs.iter().enumerate() {
        if n % 20 == 0 {
            // Half a request, held open meanwhile.
            let mut half = TcpStream::connect(front.address).await.unwrap();
            half.write_all(&input.bytes[..input.bytes.len() / 2]).await.ok();
            open.push(half);
        }
        let answer = raw(front.address, &input.bytes).await;
        assert!(is_refused(&answer), "{}: {answer:?}", input.what);
    }
    drop(open);
    assert_eq!(front.get("/health").await.code, 200);
    front.submit("good", &json!([phase("a", &[])])).await.expect(200);
    assert_eq!(front.all().await.len(), 1, "no bad input became a resource");
    let (after, peak) = (memory_kib(pid, "VmRSS"), memory_kib(pid, "VmHWM"));
    println!("{} bad inputs: {before} KiB before, {after} KiB after, {peak} KiB at most", inputs.len());
    assert!(after < before + GROWTH_KIB_MAX, "{before} KiB became {after} KiB");
    assert!(peak < PEAK_KIB_MAX, "{peak} KiB at most");
    let log = front.operator.stderr();
    assert!(!log.contains("panicked"), "{}", front.operator.tail());
}
