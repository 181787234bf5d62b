//! How to reach the API server and tell its cluster from others, for every verb that speaks to it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::time::sleep;

use crate::controller::call::{self, call};

/// Between two tries to reach the API server at the start.
const API_PAUSE: Duration = Duration::from_secs(2);
const API_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct ClusterArgs {
    /// Reach the API server as this file says; default is KUBECONFIG, then the pod's own account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Of the kubeconfig, in place of its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl ClusterArgs {
    /// A client without retries of its own.
    pub async fn client(&self) -> anyhow::Result<Client> {
        let mut config = if self.kubeconfig.is_some() || self.context.is_some() {
            let kubeconfig = match &self.kubeconfig {
                Some(path) => Kubeconfig::read_from(path),
                None => Kubeconfig::read(),
            };
            let wish = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
            Config::from_custom_kubeconfig(kubeconfig.context("cannot read the kubeconfig")?, &wish)
                .await
                .context("cannot use the kubeconfig")?
        } else {
            Config::infer().await.context("cannot find the API server: give --kubeconfig, or run in a pod")?
        };
        // Whoever calls knows better when to try again, and has a deadline of its own.
        config.default_retry = false;
        config.connect_timeout = Some(API_CONNECT_TIMEOUT);
        Client::try_from(config).context("cannot speak to the API server")
    }
}

/// The uid of kube-system, which no two clusters share and no upgrade changes; where that may not be read, of default.
///
/// Waits for the API server, since a restart would only wait too.
pub async fn cluster_id(client: &Client) -> anyhow::Result<String> {
    let api: Api<Namespace> = Api::all(client.clone());
    loop {
        let mut refusal = None;
        for name in ["kube-system", "default"] {
            match call("read a namespace for its uid", api.get(name)).await {
                Ok(found) => match found.metadata.uid {
                    Some(uid) => return Ok(uid),
                    None => bail!("the namespace {name} has no uid"),
                },
                Err(error) => refusal = Some(error),
            }
        }
        match refusal {
            Some(error) if is_worth_waiting(&error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the API server does not answer yet");
                sleep(API_PAUSE).await;
            }
            Some(error) => {
                return Err(error)
                    .context("cannot tell clusters apart: grant get on the namespaces kube-system or default");
            }
            None => bail!("the cluster has no namespaces"),
        }
    }
}

/// A server that is just starting knows neither namespaces nor rights.
fn is_worth_waiting(error: &call::Error) -> bool {
    !error.is_final()
}
