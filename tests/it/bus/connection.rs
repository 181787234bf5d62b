//! Connections to real servers: how they are made, and what is noticed when they are not what they were.

use std::{
    fs,
    time::{Duration, Instant},
};

use nkeys::KeyPair;
use pmp::bus::{Auth, Bus, ConnectOptions, Error, Link, LinkState, Message, Secret};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{DEADLINE, connected, link_where, next_body, options};
use crate::support::{Nats, NatsConfig, Tls, nats, scratch, shared_nats, unique};

fn text(secret: &str) -> Secret {
    Secret::Text(secret.to_owned())
}

fn user(name: &str, password: &str) -> Auth {
    Auth::User { name: text(name), password: text(password) }
}

/// Says something to itself.
async fn works(bus: &Bus) {
    let at = unique("works");
    let mut subscription = bus.subscribe(&at, None).await.unwrap();
    bus.prove(&mut subscription, &at, DEADLINE).await.unwrap();
    bus.publish(Message::new(at, "said")).await.unwrap();
    assert_eq!(next_body(&mut subscription).await, "said");
}

async fn server_for(authorization: serde_json::Value) -> Nats {
    nats(NatsConfig::default().without_jetstream().authorization(authorization)).await
}

/// Why the bus is not connected, once it says more than that it tries.
async fn refusal(options: ConnectOptions) -> String {
    let bus = Bus::connect(options).await.unwrap();
    let refused =
        |link: &Link| matches!(&link.state, LinkState::Disconnected { reason } if !reason.starts_with("connecting"));
    match link_where(&bus, "a reason", refused).await.state {
        LinkState::Disconnected { reason } => reason,
        LinkState::Connected => unreachable!("only disconnected links are waited for"),
    }
}

fn with_auth(server: &Nats, auth: Auth) -> ConnectOptions {
    ConnectOptions { auth, ..options(server) }
}

#[tokio::test]
async fn a_user_with_the_right_password_is_let_in_and_with_a_wrong_one_told_so() {
    let server = server_for(json!({"users": [{"user": "bob", "password": "builder"}]})).await;
    works(&connected(with_auth(&server, user("bob", "builder"))).await).await;
    let reason = refusal(with_auth(&server, user("bob", "hunter2"))).await;
    assert!(reason.to_lowercase().contains("authorization violation"), "{reason}");
    assert!(!reason.contains("hunter2"), "{reason}");
}

#[tokio::test]
async fn a_token_is_read_from_its_file_again_at_every_try() {
    let server = server_for(json!({"token": "right"})).await;
    let file = scratch("token").join("token");
    fs::write(&file, "wrong\n").unwrap();
    let bus = Bus::connect(with_auth(&server, Auth::Token(Secret::File(file.clone())))).await.unwrap();
    let violation = |link: &Link| matches!(&link.state, LinkState::Disconnected { reason } if reason.contains("authorization violation"));
    link_where(&bus, "the wrong token is refused", violation).await;
    fs::write(&file, "right\n").unwrap();
    link_where(&bus, "the right token is taken up", Link::is_connected).await;
    works(&bus).await;
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_is_named() {
    let server = server_for(json!({"token": "right"})).await;
    let reason = refusal(with_auth(&server, Auth::Token(Secret::File("no/such/token".into())))).await;
    assert!(reason.contains("no/such/token"), "{reason}");
}

#[tokio::test]
async fn an_nkey_signs_the_servers_nonce() {
    let key = KeyPair::new_user();
    let server = server_for(json!({"users": [{"nkey": key.public_key()}]})).await;
    works(&connected(with_auth(&server, Auth::Nkey(text(&key.seed().unwrap())))).await).await;
    let stranger = KeyPair::new_user().seed().unwrap();
    let reason = refusal(with_auth(&server, Auth::Nkey(text(&stranger)))).await;
    assert!(reason.to_lowercase().contains("authorization violation"), "{reason}");
}

/// A JWT as NATS signs them: `<header>.<claims>.<signature>`, each in base64url without padding.
fn jwt(issuer: &KeyPair, subject: &KeyPair, nats: &serde_json::Value) -> String {
    let claims =
        json!({"jti": "test", "iat": 1, "iss": issuer.public_key(), "sub": subject.public_key(), "nats": nats});
    let header = base64url(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let signed = format!("{header}.{}", base64url(claims.to_string().as_bytes()));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", base64url(&signature))
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digit = |bits: u32| char::from(DIGITS[(bits & 63) as usize]);
    let three = |chunk: &[u8]| {
        let bits = chunk.iter().chain(&[0, 0]).take(3).fold(0, |bits, &byte| bits << 8 | u32::from(byte));
        [18, 12, 6, 0].map(|shift| digit(bits >> shift)).into_iter().take(chunk.len() + 1)
    };
    bytes.chunks(3).flat_map(three).collect()
}

#[tokio::test]
async fn a_credentials_file_lets_its_user_in_until_it_is_another_accounts() {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let unlimited = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
        "conn": -1, "leaf": -1});
    let own = jwt(&operator, &operator, &json!({"type": "operator", "version": 2}));
    let for_account = jwt(&operator, &account, &json!({"type": "account", "version": 2, "limits": unlimited}));
    let mut preload = serde_json::Map::new();
    preload.insert(account.public_key(), for_account.into());
    let config = NatsConfig::default()
        .without_jetstream()
        .setting("operator", own.into())
        .setting("resolver", "MEMORY".into())
        .setting("resolver_preload", preload.into());
    let server = nats(config).await;

    let credentials = |issuer: &KeyPair| {
        let claims = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}});
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            jwt(issuer, &user, &claims),
            user.seed().unwrap()
        )
    };
    let file = scratch("creds").join("user.creds");
    fs::write(&file, credentials(&account)).unwrap();
    works(&connected(with_auth(&server, Auth::Credentials(Secret::File(file)))).await).await;

    let stranger = KeyPair::new_account();
    let reason = refusal(with_auth(&server, Auth::Credentials(text(&credentials(&stranger))))).await;
    assert!(reason.to_lowercase().contains("authorization violation"), "{reason}");
}

#[tokio::test]
async fn tls_is_spoken_with_the_given_roots_and_certificate_only() {
    let server = nats(NatsConfig::default().without_jetstream().tls(Tls::Mutual)).await;
    works(&connected(options(&server)).await).await;

    let mut without_root = options(&server);
    without_root.tls.ca = None;
    let reason = refusal(without_root).await;
    assert!(reason.contains("certificate"), "{reason}");

    let mut without_certificate = options(&server);
    (without_certificate.tls.cert, without_certificate.tls.key) = (None, None);
    let bus = Bus::connect(without_certificate).await.unwrap();
    let refused =
        |link: &Link| matches!(&link.state, LinkState::Disconnected { reason } if !reason.starts_with("connecting"));
    link_where(&bus, "a reason", refused).await;
}

#[tokio::test]
async fn a_server_that_waits_for_the_handshake_is_spoken_to_by_who_shakes_hands_first() {
    let server = nats(NatsConfig::default().without_jetstream().tls(Tls::First)).await;
    let mut first = options(&server);
    first.tls.first = true;
    works(&connected(first.clone()).await).await;
    // It comes back after a restart too.
    let bus = connected(first).await;
    let before = bus.link().borrow().epoch;
    server.stop().await;
    link_where(&bus, "the loss is noticed", |link| !link.is_connected()).await;
    server.start().await;
    link_where(&bus, "connected again", |link| link.is_connected() && link.epoch > before).await;
    works(&bus).await;

    // Who waits for the greeting waits in vain, and says that it is not connected.
    let waiting = Bus::connect(options(&server)).await.unwrap();
    let refused =
        |link: &Link| matches!(&link.state, LinkState::Disconnected { reason } if !reason.starts_with("connecting"));
    link_where(&waiting, "a reason", refused).await;
}

#[tokio::test]
async fn a_server_without_tls_is_not_spoken_to_when_it_is_required() {
    let server = shared_nats().await;
    let mut options = options(server);
    options.tls.required = true;
    refusal(options).await;
}

#[tokio::test]
async fn connecting_to_nobody_answers_at_once_and_goes_on_trying() {
    let server = nats(NatsConfig::default().without_jetstream()).await;
    server.stop().await;
    let bus = Bus::connect(options(&server)).await.unwrap();
    let refused = |link: &Link| matches!(&link.state, LinkState::Disconnected { reason } if reason.to_lowercase().contains("refused"));
    let link = link_where(&bus, "the refusal is named", refused).await;
    assert_eq!(link.epoch, 0);

    let error = bus.publish(Message::new("a", "")).await.unwrap_err();
    assert_eq!(error.reason(), "BusDisconnected", "{error}");
    server.start().await;
    assert_eq!(link_where(&bus, "connected", Link::is_connected).await.epoch, 1);
    works(&bus).await;
}

#[tokio::test]
async fn after_a_restart_the_epoch_has_risen_and_subscriptions_live_again() {
    let server = nats(NatsConfig::default().without_jetstream()).await;
    let bus = connected(options(&server)).await;
    let at = unique("restart");
    let mut subscription = bus.subscribe(&at, None).await.unwrap();
    bus.prove(&mut subscription, &at, DEADLINE).await.unwrap();
    let before = bus.link().borrow().epoch;

    server.kill();
    link_where(&bus, "the loss is noticed", |link| !link.is_connected()).await;
    let began = Instant::now();
    let publish = bus.publish(Message::new(at.clone(), "zombie")).await;
    let request = bus.request(Message::new(at.clone(), "zombie"), DEADLINE).await;
    assert!(matches!(publish, Err(Error::Disconnected { .. })), "{publish:?}");
    assert!(matches!(request, Err(Error::Disconnected { .. })), "{request:?}");
    assert!(began.elapsed() < Duration::from_secs(1), "refused at once, not after a timeout");

    server.start().await;
    link_where(&bus, "connected again", |link| link.is_connected() && link.epoch > before).await;
    bus.prove(&mut subscription, &at, DEADLINE).await.unwrap();
    bus.publish(Message::new(at, "alive")).await.unwrap();
    // What was refused while disconnected is not sent late.
    assert_eq!(next_body(&mut subscription).await, "alive");
}

#[tokio::test]
async fn a_server_that_hangs_is_noticed_within_three_pings() {
    let server = nats(NatsConfig::default().without_jetstream()).await;
    let bus = connected(options(&server)).await;
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let began = Instant::now();
    link_where(&bus, "the hang is noticed", |link| !link.is_connected()).await;
    let noticed = began.elapsed();
    kill_process(pid, Signal::CONT).unwrap();
    // Three pings at 300 ms; the rest is for a busy machine.
    assert!(noticed < Duration::from_secs(3), "{noticed:?}");
    let before = bus.link().borrow().epoch;
    link_where(&bus, "connected again", |link| link.is_connected() && link.epoch > before).await;
    works(&bus).await;
}

/// A server whose only user may do but one thing each way, and its replies.
async fn narrow_server() -> (Nats, ConnectOptions) {
    let server = server_for(json!({"users": [{"user": "bob", "password": "builder", "permissions": {
        "publish": {"allow": ["free.>", "_INBOX_bob.>"]},
        "subscribe": {"allow": ["free.>", "_INBOX_bob.>"]},
    }}]}))
    .await;
    let narrow = with_auth(&server, user("bob", "builder"));
    (server, ConnectOptions { inbox_prefix: "_INBOX_bob".to_owned(), ..narrow })
}

fn denied_subject(error: Error) -> String {
    match error {
        Error::Denied { subject } => subject,
        other => panic!("not denied but: {other}"),
    }
}

#[tokio::test]
async fn a_denied_subscription_is_found_by_its_proof() {
    let (_server, narrow) = narrow_server().await;
    let bus = connected(narrow).await;
    let mut allowed = bus.subscribe("free.*", None).await.unwrap();
    bus.prove(&mut allowed, "free.a", DEADLINE).await.unwrap();

    let mut denied = bus.subscribe("secret.*", None).await.unwrap();
    let error = bus.prove(&mut denied, "secret.a", DEADLINE).await.unwrap_err();
    assert!(denied_subject(error).starts_with("secret."));

    let mut in_group = bus.subscribe("secret.jobs", Some("workers")).await.unwrap();
    let error = bus.prove(&mut in_group, "secret.jobs", DEADLINE).await.unwrap_err();
    assert_eq!(denied_subject(error), "secret.jobs");
}

#[tokio::test]
async fn a_denied_request_says_so_before_its_timeout() {
    let (_server, narrow) = narrow_server().await;
    let bus = connected(narrow.clone()).await;
    let error = bus.request(Message::new("secret.a", ""), DEADLINE * 10).await.unwrap_err();
    assert_eq!(denied_subject(error), "secret.a");

    let deaf = connected(ConnectOptions { inbox_prefix: "_INBOX_other".to_owned(), ..narrow }).await;
    let mut listener = bus.subscribe("free.a", None).await.unwrap();
    bus.prove(&mut listener, "free.a", DEADLINE).await.unwrap();
    let error = deaf.request(Message::new("free.a", ""), DEADLINE * 10).await.unwrap_err();
    assert!(denied_subject(error).starts_with("_INBOX_other."));
}

#[tokio::test]
async fn the_servers_own_limit_holds() {
    let server = nats(NatsConfig::default().without_jetstream().setting("max_payload", json!(1000))).await;
    let bus = connected(options(&server)).await;
    assert_eq!(bus.payload_bytes_max(), 1000);
    let error = bus.publish(Message::new("a", vec![0; 1001])).await.unwrap_err();
    assert_eq!(error.reason(), "TooLarge");
    works(&bus).await;
}
