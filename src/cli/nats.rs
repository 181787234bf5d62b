//! How to reach NATS, for every verb that speaks to it.

use std::path::PathBuf;

use anyhow::{Context as _, bail};

use super::filled;
use crate::{
    bus::{Auth, ConnectOptions, Secret, Tls},
    protocol::Prefix,
};

/// Where NATS is if nobody says.
const DEFAULT_URL: &str = "nats://127.0.0.1:4222";

#[derive(Debug, clap::Args)]
pub struct NatsArgs {
    /// Where NATS is: nats://host:4222, tls://host [repeatable] [default: nats://127.0.0.1:4222]
    #[arg(long = "nats", env = "NATS_URL", value_name = "URL", value_delimiter = ',')]
    urls: Vec<String>,
    /// User name; needs a password
    #[arg(long = "nats-user", env = "NATS_USER", value_name = "NAME")]
    user: Option<String>,
    /// Of the user; better in a file, since arguments are seen by everyone on the machine
    #[arg(long = "nats-password", env = "NATS_PASSWORD", value_name = "TEXT", hide_env_values = true)]
    password: Option<String>,
    /// Read again at every connect, as are all files here
    #[arg(long = "nats-password-file", env = "NATS_PASSWORD_FILE", value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// In place of user and password
    #[arg(long = "nats-token", env = "NATS_TOKEN", value_name = "TEXT", hide_env_values = true)]
    token: Option<String>,
    /// The same in a file
    #[arg(long = "nats-token-file", env = "NATS_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A .creds file: JWT and seed
    #[arg(long = "nats-creds", env = "NATS_CREDS", value_name = "FILE")]
    creds: Option<PathBuf>,
    /// The seed of an nkey
    #[arg(long = "nats-nkey", env = "NATS_NKEY", value_name = "SEED", hide_env_values = true)]
    nkey: Option<String>,
    /// The same in a file
    #[arg(long = "nats-nkey-file", env = "NATS_NKEY_FILE", value_name = "FILE")]
    nkey_file: Option<PathBuf>,
    /// Roots in place of the platform's, PEM
    #[arg(long = "nats-ca", env = "NATS_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Client certificate, PEM
    #[arg(long = "nats-cert", env = "NATS_CERT", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Key of the client certificate, PEM
    #[arg(long = "nats-key", env = "NATS_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Shake hands before the server's greeting (handshake_first there)
    #[arg(long = "nats-tls-first", env = "NATS_TLS_FIRST")]
    tls_first: bool,
    /// Subject prefix of replies: the user needs leave to subscribe to <PREFIX>.> [default: _INBOX_pmp-<verb>]
    #[arg(long = "nats-inbox-prefix", env = "NATS_INBOX_PREFIX", value_name = "PREFIX")]
    inbox_prefix: Option<String>,
    /// What stands before the session id in every subject
    #[arg(long, env = "PMP_SUBJECT_PREFIX", value_name = "PREFIX", default_value = "plan.session")]
    subject_prefix: String,
}

impl NatsArgs {
    pub fn prefix(&self) -> anyhow::Result<Prefix> {
        Prefix::new(&self.subject_prefix).context("--subject-prefix")
    }

    /// Whether somebody said where NATS is, for verbs that can do without.
    pub fn is_given(&self) -> bool {
        !filled(&self.urls).is_empty()
    }

    /// Under this name at the server.
    pub fn options(&self, name: &str) -> anyhow::Result<ConnectOptions> {
        let urls = if self.is_given() { filled(&self.urls) } else { vec![DEFAULT_URL.to_owned()] };
        let mut options = ConnectOptions::new(urls);
        name.clone_into(&mut options.name);
        // Of its own name, so that one may be allowed to hear its replies and nobody else's.
        options.inbox_prefix = format!("_INBOX_{name}.{:016x}", rand::random::<u64>());
        options.auth = self.auth()?;
        if let Some(prefix) = self.inbox_prefix.as_ref().filter(|prefix| !prefix.is_empty()) {
            options.inbox_prefix = format!("{prefix}.{:016x}", rand::random::<u64>());
        }
        options.tls = Tls {
            required: self.ca.is_some() || self.cert.is_some() || self.tls_first,
            ca: self.ca.clone(),
            cert: self.cert.clone(),
            key: self.key.clone(),
            first: self.tls_first,
        };
        Ok(options)
    }

    fn auth(&self) -> anyhow::Result<Auth> {
        let password = secret("--nats-password", self.password.as_ref(), self.password_file.as_ref())?;
        let token = secret("--nats-token", self.token.as_ref(), self.token_file.as_ref())?;
        let nkey = secret("--nats-nkey", self.nkey.as_ref(), self.nkey_file.as_ref())?;
        let user = match (&self.user, password) {
            (Some(name), Some(password)) => Some(Auth::User { name: Secret::Text(name.clone()), password }),
            (Some(_), None) => bail!("--nats-user needs --nats-password or --nats-password-file"),
            (None, Some(_)) => bail!("--nats-password needs --nats-user"),
            (None, None) => None,
        };
        let creds = self.creds.clone().map(|file| Auth::Credentials(Secret::File(file)));
        let mut given = [user, token.map(Auth::Token), nkey.map(Auth::Nkey), creds].into_iter().flatten();
        let auth = given.next().unwrap_or_default();
        if given.next().is_some() {
            bail!("give one way to log in to NATS: user and password, token, nkey or creds");
        }
        Ok(auth)
    }
}

fn secret(flag: &str, text: Option<&String>, file: Option<&PathBuf>) -> anyhow::Result<Option<Secret>> {
    match (text.filter(|text| !text.is_empty()), file) {
        (Some(_), Some(_)) => bail!("give {flag} or {flag}-file, not both"),
        (Some(text), None) => Ok(Some(Secret::Text(text.clone()))),
        (None, file) => Ok(file.cloned().map(Secret::File)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: NatsArgs,
    }

    fn auth(arguments: &[&str]) -> anyhow::Result<Auth> {
        let line = Line::parse_from([&["operator"], arguments].concat());
        line.args.auth()
    }

    #[test]
    fn each_way_to_log_in_is_taken_and_two_at_once_are_not() {
        assert!(matches!(auth(&[]), Ok(Auth::None)));
        assert!(matches!(auth(&["--nats-user=a", "--nats-password=b"]), Ok(Auth::User { .. })));
        assert!(matches!(auth(&["--nats-token-file=t"]), Ok(Auth::Token(Secret::File(_)))));
        assert!(matches!(auth(&["--nats-creds=c"]), Ok(Auth::Credentials(_))));
        assert!(matches!(auth(&["--nats-nkey=SU"]), Ok(Auth::Nkey(Secret::Text(_)))));
        assert!(auth(&["--nats-token=t", "--nats-creds=c"]).is_err());
        assert!(auth(&["--nats-token=t", "--nats-token-file=f"]).is_err());
        assert!(auth(&["--nats-user=a"]).is_err());
        assert!(auth(&["--nats-password=b"]).is_err());
    }

    #[test]
    fn addresses_are_given_one_by_one_or_in_a_list() {
        let line = Line::parse_from(["operator", "--nats", "nats://a,nats://b", "--nats=nats://c"]);
        assert_eq!(line.args.urls, ["nats://a", "nats://b", "nats://c"]);
    }

    #[test]
    fn a_certificate_without_its_key_is_no_command_line() {
        assert!(Line::try_parse_from(["operator", "--nats-cert=c"]).is_err());
        assert!(Line::try_parse_from(["operator", "--nats-cert=c", "--nats-key=k"]).is_ok());
    }
}
