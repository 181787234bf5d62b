//! Orders to a session task: what one of them changes together, changes together.

use std::{sync::Arc, time::Duration};

use pmp::{
    bus::{Bus, Inbound, InboundMessage},
    engine::{Edit, Keep, Output, Session, Settings, Shutdown, Strategy, Verdict},
    manifest::{OtherKinds, Plan, from_values},
    protocol::{Prefix, SessionId},
    sessions::{self, Clock, Listener, LocalStore, Order, Origin, Past, Start},
};
use serde_json::json;
use tokio::{sync::watch, time::timeout};

struct Deaf;

impl Listener for Deaf {
    fn hear(&mut self, _: &Output, _: &Session) {}

    fn pass_on(&mut self, _: InboundMessage) {}
}

fn plan(id: &str) -> Arc<Plan> {
    Arc::new(from_values(&[json!({"kind": "Phase", "id": id, "spec": {}})], OtherKinds::Refuse).unwrap().0)
}

#[tokio::test]
async fn an_edit_that_clears_a_shutdown_is_not_shut_down_as_it_starts() {
    let bus = Bus::memory();
    let inbound = Inbound::run(bus.clone(), Prefix::default(), "here").await.unwrap();
    let cancelled = Settings { shutdown: Some(Shutdown::Cancel), ..Settings::default() };
    let clock = Clock::System;
    let session = Session::start("uid", plan("a"), 1, Strategy::Hybrid, cancelled, clock.now());
    assert_eq!(session.verdict(), Some(Verdict::Cancelled));
    let (picture, mut stored) = watch::channel(Arc::new(session.record()));
    let edit = Edit { plan: plan("b"), revision: 2, strategy: Strategy::Hybrid, keep: Keep::Unchanged };
    let order =
        Order::Obey { generation: 2, settings: Box::new(Settings::default()), requests: Vec::new(), edit: Some(edit) };
    let start = Start {
        session,
        id: SessionId::new("s").unwrap(),
        prefix: Prefix::default(),
        origin: Origin("here".to_owned()),
        generation: 1,
        orders: vec![order],
        past: Past::Stored,
        position: None,
        clock,
    };
    let _task = sessions::spawn(bus, &inbound, start, LocalStore(picture), Deaf);
    let goes_on = stored.wait_for(|record| record.revision == 2);
    let record = timeout(Duration::from_secs(30), goes_on).await.expect("it is stored").unwrap().clone();
    assert_eq!(record.verdict, None, "{record:?}");
}
