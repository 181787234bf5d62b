//! `pmp operator`: the operator's process. Arguments become [`controller::Options`], signals an orderly end.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::Context as _;
use futures::StreamExt as _;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    cluster::{ClusterArgs, cluster_id},
    filled,
    gateway::{GatewayArgs, logs, serve_at},
    nats::NatsArgs,
    process::{LogArgs, process_name, run_to_end, signals},
};
use crate::{
    bus::Bus,
    controller::{self, Options, Scope, Selector, View, heart::Heart, labels::LabelRules},
    gateway::{self, Role, health, serve},
    sessions::Clock,
};

/// How long the sessions may take to store what they know after the first signal; a pod is given 30 s.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs the operator: watches PhaseManifests and runs their sessions over NATS.
///
/// The first SIGTERM or SIGINT stores what is known and ends within 10 seconds; sessions go on under the next operator.
/// A second one ends at once.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    nats: NatsArgs,
    /// Run the resources of this namespace only; default is all [repeatable]
    #[arg(long = "namespace", short, env = "PMP_NAMESPACES", value_name = "NAMESPACE", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Run only resources with these labels, as in kubectl --selector
    #[arg(long, env = "PMP_LABEL_SELECTOR", value_name = "SELECTOR")]
    label_selector: Option<String>,
    /// Let handlers put labels with this prefix; without a prefix they always may [repeatable]
    #[arg(long = "label-prefix", env = "PMP_LABEL_PREFIXES", value_name = "PREFIX", value_delimiter = ',')]
    label_prefixes: Vec<String>,
    /// Where /livez and /readyz answer; port 0 takes a free one, which the log names
    #[arg(long, env = "PMP_HEALTH_ADDR", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    health_addr: SocketAddr,
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    pub log: LogArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs until a signal, or until the operator cannot go on.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    run_to_end(live(args))
}

/// Health answers from the first moment to the last, so that whoever watches sees the whole life of the process.
async fn live(args: &Args) -> anyhow::Result<ExitCode> {
    let mut signals = signals()?;
    let (heart, stop, dead) = (Heart::new(), CancellationToken::new(), CancellationToken::new());
    let listener = serve::bind(args.health_addr).await.context("cannot answer health checks")?;
    let address = listener.local_addr().context("cannot answer health checks")?;
    tracing::info!(%address, "health checks are answered");
    let health = tokio::spawn(health::answer(listener, heart.clone(), dead.clone()));
    let work = operate(args, heart.clone(), stop.clone());
    tokio::pin!(work);
    let ended = tokio::select! {
        ended = &mut work => ended,
        Some(_) = signals.next() => {
            tracing::info!("stopping");
            heart.stop();
            stop.cancel();
            tokio::select! {
                ended = &mut work => ended,
                () = sleep(DRAIN) => {
                    tracing::error!("not everything was stored in time; the next operator asks the runtimes");
                    return Ok(ExitCode::FAILURE);
                }
                Some(code) = signals.next() => return Ok(ExitCode::from(code)),
            }
        }
    };
    dead.cancel();
    health.await.context("the answers to health checks ended early")?;
    ended.map(|()| ExitCode::SUCCESS)
}

async fn operate(args: &Args, heart: Heart, stop: CancellationToken) -> anyhow::Result<()> {
    let Some(options) = stop.run_until_cancelled(options(args, heart)).await else { return Ok(()) };
    let options = options?;
    let served = serve_at(args.gateway.address()?, front(args, &options, &stop).await?, &stop).await?;
    let ended = controller::run(options, stop.clone()).await.context("the operator cannot go on");
    stop.cancel();
    served.await.context("the gateway ended early")?;
    ended
}

/// The gateway of this operator, over the same cache and connection.
async fn front(args: &Args, options: &Options, stop: &CancellationToken) -> anyhow::Result<gateway::Options> {
    Ok(gateway::Options {
        client: options.client.clone(),
        view: options.view.clone(),
        heart: options.heart.clone(),
        scope: options.scope.clone(),
        selector: options.selector.clone(),
        bound: None,
        logs: Some(logs(&options.bus, &options.prefix, stop).await?),
        bus: Some(options.bus.clone()),
        role: Role::Operator,
        bounds: args.gateway.bounds(),
    })
}

/// Everything but the API server is judged first: a wrong argument is told at once.
async fn options(args: &Args, heart: Heart) -> anyhow::Result<Options> {
    args.gateway.address()?;
    let prefix = args.nats.prefix()?;
    let selector = match args.label_selector.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => Some(Selector::new(text).context("--label-selector")?),
        None => None,
    };
    let labels = LabelRules {
        prefixes: filled(&args.label_prefixes),
        reserved: selector.as_ref().map(Selector::keys).unwrap_or_default(),
    };
    let bus = Bus::connect(args.nats.options("pmp-operator")?).await.context("cannot set up the connection to NATS")?;
    let scope = Scope::of(filled(&args.namespaces));
    let client = args.cluster.client().await?;
    let origin = cluster_id(&client).await?;
    let process = process_name();
    tracing::info!(origin, process, "the API server answers");
    Ok(Options {
        client,
        bus,
        prefix,
        origin,
        process,
        scope,
        selector,
        labels,
        heart,
        view: View::new(),
        clock: Clock::System,
    })
}
