//! `pmp gateway`: the HTTP endpoints without an operator, beside one session or for some namespaces.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::Context as _;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    cluster::ClusterArgs,
    filled,
    nats::NatsArgs,
    process::{LogArgs, run_to_end, signals},
};
use crate::{
    bus::Bus,
    controller::{Scope, Selector, View, heart::Heart},
    gateway::{self, Bound, Bounds, Options, Rates, Role, logs::Logs, serve},
    protocol::{Prefix, SessionId},
};

/// What every verb that serves HTTP takes.
#[derive(Debug, clap::Args)]
pub struct GatewayArgs {
    /// Where the HTTP endpoints answer; loopback only, since there is no authentication yet. Port 0 takes a free one
    #[arg(long = "gateway-addr", env = "PMP_GATEWAY_ADDR", value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    addr: SocketAddr,
    /// Largest manifest over HTTP, in bytes
    #[arg(long = "gateway-body-bytes-max", env = "PMP_GATEWAY_BODY_BYTES_MAX", value_name = "BYTES", default_value_t = 1 << 20)]
    body_bytes_max: u32,
    /// Requests a second of one address; a burst may have twice that
    #[arg(long = "gateway-peer-rate", env = "PMP_GATEWAY_PEER_RATE", value_name = "COUNT", default_value_t = 200)]
    peer_rate: u32,
    /// Requests a second of all together
    #[arg(long = "gateway-rate", env = "PMP_GATEWAY_RATE", value_name = "COUNT", default_value_t = 1000)]
    rate: u32,
    /// Followers of statuses and logs at a time
    #[arg(long = "gateway-streams-max", env = "PMP_GATEWAY_STREAMS_MAX", value_name = "COUNT", default_value_t = 256)]
    streams_max: u16,
}

impl GatewayArgs {
    /// Where to listen, if that is allowed.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        gateway::check_address(self.addr).context("--gateway-addr")
    }

    pub fn bounds(&self) -> Bounds {
        Bounds {
            body_bytes_max: usize::try_from(self.body_bytes_max).unwrap_or(usize::MAX),
            rates: Rates { peer: self.peer_rate.max(1), all: self.rate.max(1) },
            streams_max: self.streams_max.into(),
            ..Bounds::default()
        }
    }
}

/// Serves the HTTP endpoints of the protocol, from the API server's resources; the operator that runs them is elsewhere.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The one session that it serves: the flat paths mean it, and no other is answered
    #[arg(long, env = "PMP_SESSION", value_name = "ID")]
    session: Option<String>,
    /// Serve the resources of this namespace only; default is all, and with --session default [repeatable]
    #[arg(long = "namespace", short, env = "PMP_NAMESPACES", value_name = "NAMESPACE", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// Serve only resources with these labels, as in kubectl --selector
    #[arg(long, env = "PMP_LABEL_SELECTOR", value_name = "SELECTOR")]
    label_selector: Option<String>,
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    nats: NatsArgs,
    #[command(flatten)]
    pub log: LogArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs until a signal.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    run_to_end(live(args))
}

async fn live(args: &Args) -> anyhow::Result<ExitCode> {
    let mut signals = signals()?;
    let (heart, stop) = (Heart::new(), CancellationToken::new());
    // Judged before anything is waited for.
    let address = args.gateway.address()?;
    let prefix = args.nats.prefix()?;
    let selector = args.label_selector.as_deref().filter(|text| !text.is_empty()).map(Selector::new).transpose();
    let selector = selector.context("--label-selector")?;
    let mut namespaces = filled(&args.namespaces);
    let session = args.session.as_deref().filter(|id| !id.is_empty()).map(SessionId::new).transpose();
    let session = session.context("--session")?;
    if session.is_some() {
        anyhow::ensure!(namespaces.len() <= 1, "--session is in one --namespace");
        if namespaces.is_empty() {
            namespaces.push("default".to_owned());
        }
    }
    let bound = session.map(|session| Bound { session, namespace: namespaces[0].clone() });
    let scope = Scope::of(namespaces);
    let bus = if args.nats.is_given() {
        let connected = Bus::connect(args.nats.options("pmp-gateway")?).await;
        Some(connected.context("cannot set up the connection to NATS")?)
    } else {
        None
    };
    let logs = match &bus {
        Some(bus) => Some(logs(bus, &prefix, &stop).await?),
        None => None,
    };
    let client = args.cluster.client().await?;
    let view = View::new();
    let options = Options {
        client: client.clone(),
        view: view.clone(),
        heart: heart.clone(),
        scope: scope.clone(),
        selector: selector.clone(),
        bound,
        logs,
        bus,
        role: Role::Alone,
        bounds: args.gateway.bounds(),
    };
    let served = serve_at(address, options, &stop).await?;
    let follow = view.follow(client, &scope, selector.as_ref(), &heart, stop.clone());
    tokio::pin!(follow);
    tokio::select! {
        () = &mut follow => {}
        Some(_) = signals.next() => {
            tracing::info!("stopping");
            heart.stop();
            stop.cancel();
            tokio::select! {
                () = &mut follow => {}
                Some(code) = signals.next() => return Ok(ExitCode::from(code)),
            }
        }
    }
    stop.cancel();
    served.await.context("the gateway ended early")?;
    Ok(ExitCode::SUCCESS)
}

/// Lines of all sessions under the prefix, for GET /logs.
pub async fn logs(bus: &Bus, prefix: &Prefix, stop: &CancellationToken) -> anyhow::Result<Logs> {
    Logs::start(bus.clone(), prefix.clone(), stop.clone()).await.context("cannot listen to logs")
}

/// Listens, says where, and serves in the background until `stop`.
pub async fn serve_at(
    address: SocketAddr,
    options: Options,
    stop: &CancellationToken,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let listener = serve::bind(address).await.context("cannot serve HTTP")?;
    let address = listener.local_addr().context("cannot serve HTTP")?;
    tracing::info!(%address, "the gateway answers");
    Ok(tokio::spawn(gateway::run(listener, options, stop.clone())))
}
