//! A manifest over HTTP beside the same one created at the API server: what the gateway adds.
//!
//! No operator runs meanwhile, so that nothing but the way in is measured.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use kube::{
    Api, Client, Config,
    api::PostParams,
    core::{ApiResource, DynamicObject},
};
use pmp::resource::PhaseManifest;
use serde::Serialize;
use serde_json::json;

use crate::{
    bed::{BusMode, account, address_in, has_gateway},
    load::{Load, Shape, phases},
    ours,
    run::clear,
    stats::median_and_p99,
    support::{Cluster, Process, bin, eventually, unique},
};

const WORK: Load = Load { name: "post", manifests: 1, shape: Shape::Chain(10) };
const SOON: Duration = Duration::from_mins(1);
/// Of the gateway, and of whoever creates without it.
const ACCOUNT: &str = "gateway";
/// Manifests before any is counted.
const WARM_UP: usize = 20;

/// From the request to its answer, one after the other.
#[derive(Debug, Clone, Serialize)]
pub struct PostRow {
    pub what: &'static str,
    pub median_ms: f64,
    pub p99_ms: f64,
}

/// Both ways, so many times each; or why not.
pub async fn measure(cluster: &Cluster, count: usize) -> Result<[PostRow; 2], String> {
    if !has_gateway() {
        return Err("this build serves no POST /plan".to_owned());
    }
    let namespace = cluster.namespace("bench-post").await;
    let nats = BusMode::Plain.server().await;
    let kubeconfig = account(cluster, &namespace, ACCOUNT).await;
    let mut command = Command::new(bin());
    command.args(["gateway", "--gateway-addr", "127.0.0.1:0", "--namespace", &namespace]);
    command.args(["--gateway-peer-rate", "100000", "--gateway-rate", "100000"]);
    command.args(["--nats", &nats.url, "--subject-prefix", &unique("bench"), "--kubeconfig"]).arg(kubeconfig);
    let gateway = Process::start("gateway", &command);
    let address = eventually(SOON, "the gateway answers", async || address_in(&gateway.stderr(), "gateway")).await;
    let url = format!("http://{address}").parse().expect("an address makes a URL");
    let http = Client::try_from(Config::new(url)).expect("a plain client needs nothing");
    eventually(SOON, "the gateway takes a plan", async || post(&http, "first").await.ok()).await;

    // As the gateway itself reaches the API server: by the same account, over TLS.
    let client = cluster.service_account_client(&namespace, ACCOUNT).await;
    let api = Api::namespaced_with(client, &namespace, &ApiResource::erase::<PhaseManifest>(&()));
    let (mut raw, mut posts) = (Vec::new(), Vec::new());
    // By turns, so that a change of the machine's mood meets both.
    for index in 0..WARM_UP + count {
        raw.push(create(&api, &format!("raw-{index}")).await);
        let began = Instant::now();
        post(&http, &format!("post-{index}")).await.expect("a new plan is taken");
        posts.push(began.elapsed());
    }
    clear(&cluster.client, &namespace, &ApiResource::erase::<PhaseManifest>(&())).await;
    Ok([row("create at the API server", &raw), row("POST /plan", &posts)])
}

fn row(what: &'static str, took: &[Duration]) -> PostRow {
    let (median_ms, p99_ms) = median_and_p99(&took[WARM_UP..]);
    PostRow { what, median_ms, p99_ms }
}

async fn create(api: &Api<DynamicObject>, name: &str) -> Duration {
    let mut object = ours::objects(&WORK).remove(0);
    object["metadata"]["name"] = json!(name);
    let object: DynamicObject = serde_json::from_value(object).expect("it is an object");
    let began = Instant::now();
    api.create(&PostParams::default(), &object).await.expect("a new object is taken");
    began.elapsed()
}

async fn post(http: &Client, session: &str) -> Result<(), kube::Error> {
    let body = phases(&WORK.shape.steps(7)).to_string().into_bytes();
    let request = axum::http::Request::post(format!("/plan?session={session}"))
        .header("content-type", "application/json")
        .body(body)
        .expect("the request is complete");
    http.request_text(request).await.map(drop)
}
