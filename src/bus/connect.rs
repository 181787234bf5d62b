//! What a connection to NATS is made of: addresses, credentials, TLS.
//!
//! Credentials that are given as files are read again at every connect, so that a rotated Secret is taken up without a
//! restart; so are certificates.

use std::{fmt, fs, path::PathBuf, str::FromStr, time::Duration};

use rand::Rng;

use super::{Error, subject};

/// Messages that one subscription holds for a slow reader before it loses some.
pub(super) const QUEUE_MESSAGES_MAX: usize = 65_536;

/// Largest secret file; a credentials file has about 1 KiB.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// How to reach NATS. [`ConnectOptions::new`] gives the defaults.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// `nats://host:4222`, `tls://host`, `host`; without credentials in them, because addresses are logged.
    pub servers: Vec<String>,
    /// What the server's monitoring calls this connection.
    pub name: String,
    pub auth: Auth,
    pub tls: Tls,
    /// Subject prefix of replies; the user needs to subscribe to `<prefix>.>`.
    pub inbox_prefix: String,
    /// A dead link is noticed after three of these (and 5 s leave a margin below the offer timeout's repeats).
    pub ping_interval: Duration,
    /// For one try: TCP, TLS and the server's greeting.
    pub connect_timeout: Duration,
    /// Messages that one subscription holds for a slow reader.
    pub queue_messages_max: usize,
}

impl ConnectOptions {
    /// No credentials, no TLS but where the server or the address wants it, pings every 5 s, a random inbox.
    pub fn new(servers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            name: "pmp".to_owned(),
            auth: Auth::None,
            tls: Tls::default(),
            inbox_prefix: format!("_INBOX_pmp.{:016x}", rand::rng().next_u64()),
            ping_interval: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            queue_messages_max: QUEUE_MESSAGES_MAX,
        }
    }

    /// Everything that retrying cannot mend.
    pub(super) fn check(&self) -> Result<Vec<async_nats::ServerAddr>, Error> {
        let refuse = |what, detail: &str| Err(Error::Option { what, detail: detail.to_owned() });
        if self.servers.is_empty() {
            return refuse("servers", "the list is empty");
        }
        if subject::check_subject(&self.inbox_prefix).is_err() {
            return refuse("inbox_prefix", "it is no subject");
        }
        if self.ping_interval.is_zero() || self.connect_timeout.is_zero() || self.queue_messages_max == 0 {
            return refuse("ping_interval, connect_timeout and queue_messages_max", "they are above zero");
        }
        if self.tls.cert.is_some() != self.tls.key.is_some() {
            return refuse("tls", "a client certificate needs its key, and a key its certificate");
        }
        self.servers.iter().map(|address| parse_address(address)).collect()
    }
}

fn parse_address(address: &str) -> Result<async_nats::ServerAddr, Error> {
    // Whatever stands before the @ stays out of the error.
    let shown = address.rsplit('@').next().unwrap_or_default().to_owned();
    let refuse = |detail: &str| Error::Address { address: shown.clone(), detail: detail.to_owned() };
    if address.contains('@') {
        return Err(refuse("it holds credentials, which would be logged: give them apart from the address"));
    }
    let parsed = async_nats::ServerAddr::from_str(address).map_err(|error| refuse(&error.to_string()))?;
    if parsed.is_websocket() {
        return Err(refuse("WebSocket is not spoken here: use nats:// or tls://"));
    }
    Ok(parsed)
}

/// Who we say that we are.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    #[default]
    None,
    User {
        name: Secret,
        password: Secret,
    },
    Token(Secret),
    /// The seed of an nkey (`SU...`).
    Nkey(Secret),
    /// The text of a `.creds` file: a JWT and the seed that signs for it.
    Credentials(Secret),
}

/// A secret text, or the file that holds it (without the line break at its end). Debug output never shows it.
#[derive(Clone)]
pub enum Secret {
    Text(String),
    File(PathBuf),
}

impl Secret {
    fn read(&self) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => {
                let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
                if fs::metadata(path).map_err(unreadable)?.len() > SECRET_BYTES_MAX {
                    return Err(format!("{} is larger than a secret may be (64 KiB)", path.display()));
                }
                let text = fs::read_to_string(path).map_err(unreadable)?;
                Ok(text.trim_end_matches(['\r', '\n']).to_owned())
            }
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// TLS beyond what server and address ask for. Files are PEM and read at every connect.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Refuse to speak in clear text.
    pub required: bool,
    /// Roots in place of the platform's.
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Shake hands before the server's greeting (`handshake_first` there).
    pub first: bool,
}

impl Auth {
    /// The answer to the server's nonce, with every file read now. Errors are for people and name no secret.
    pub(super) fn answer(&self, nonce: &[u8]) -> Result<async_nats::Auth, String> {
        let mut auth = async_nats::Auth::new();
        match self {
            Self::None => {}
            Self::User { name, password } => {
                auth.username = Some(name.read()?);
                auth.password = Some(password.read()?);
            }
            Self::Token(token) => auth.token = Some(token.read()?),
            Self::Nkey(seed) => {
                let key = key_pair(seed.read()?.trim())?;
                auth.signature = Some(key.sign(nonce).map_err(|error| format!("cannot sign: {error}"))?);
                auth.nkey = Some(key.public_key());
            }
            Self::Credentials(text) => {
                let text = text.read()?;
                let block = |label| {
                    pem_like_block(&text, label).ok_or_else(|| format!("the credentials hold no {label} block"))
                };
                let key = key_pair(block("USER NKEY SEED")?)?;
                auth.jwt = Some(block("NATS USER JWT")?.to_owned());
                auth.signature = Some(key.sign(nonce).map_err(|error| format!("cannot sign: {error}"))?);
            }
        }
        Ok(auth)
    }
}

fn key_pair(seed: &str) -> Result<nkeys::KeyPair, String> {
    nkeys::KeyPair::from_seed(seed).map_err(|error| format!("the nkey seed cannot be read: {error}"))
}

/// The line after `-----BEGIN <label>-----` (credentials files have blocks of one line).
fn pem_like_block<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.trim_matches('-') == format!("BEGIN {label}"))?;
    lines.find(|line| !line.is_empty() && !line.starts_with("---"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_credentials_is_refused_without_repeating_them() {
        let error = ConnectOptions::new(["nats://bob:hunter2@localhost:4222"]).check().unwrap_err();
        assert_eq!(error.reason(), "BadConnection");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn options_that_no_retry_can_mend_are_refused_at_once() {
        assert!(ConnectOptions::new(Vec::<String>::new()).check().is_err());
        assert!(ConnectOptions::new(["ws://localhost"]).check().is_err());
        assert!(ConnectOptions::new(["http://localhost"]).check().is_err());
        let mut options = ConnectOptions::new(["localhost"]);
        assert!(options.check().is_ok());
        options.tls.cert = Some("cert.pem".into());
        assert!(options.check().is_err());
    }

    #[test]
    fn a_secret_is_never_shown() {
        let auth = Auth::User { name: Secret::Text("bob".into()), password: Secret::Text("hunter2".into()) };
        assert!(!format!("{auth:?}").contains("hunter2"));
    }

    #[test]
    fn credentials_give_their_jwt_and_sign_with_their_seed() {
        let key = nkeys::KeyPair::new_user();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.a-b_c\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            key.seed().unwrap()
        );
        let auth = Auth::Credentials(Secret::Text(text)).answer(b"nonce").unwrap();
        assert_eq!(auth.jwt.as_deref(), Some("eyJ0.a-b_c"));
        key.verify(b"nonce", &auth.signature.unwrap()).unwrap();
    }

    #[test]
    fn credentials_without_a_seed_say_what_is_missing() {
        let Err(error) = Auth::Credentials(Secret::Text("nothing".into())).answer(b"nonce") else {
            panic!("nothing to sign with")
        };
        assert!(error.contains("USER NKEY SEED"), "{error}");
    }

    #[test]
    fn a_file_is_read_again_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let auth = Auth::Token(Secret::File(path.clone()));
        assert!(auth.answer(b"").is_err());
        fs::write(&path, "one\n").unwrap();
        assert_eq!(auth.answer(b"").unwrap().token.as_deref(), Some("one"));
        fs::write(&path, "two\n").unwrap();
        assert_eq!(auth.answer(b"").unwrap().token.as_deref(), Some("two"));
    }
}
