//! Names of the NATS headers that we write and read. Header names on NATS keep their case.

/// Marks every message of an operator with the id of its cluster: a message with any origin is never a submission or a
/// command, and a foreign one on a session of ours means that two operators share it (design, "Origins").
pub const ORIGIN: &str = "Pmp-Origin";

/// On `.control x-report` of an operator: which of the cluster's processes believes that it holds the session. Two that
/// believe so hear it from each other, and look who is written down.
pub const HOLDER: &str = "Pmp-Holder";

/// W3C Trace Context; lower case, as its specification writes it.
pub const TRACEPARENT: &str = "traceparent";

/// JetStream's deduplication key. An economy only: nothing rests on it.
pub const MESSAGE_ID: &str = "Nats-Msg-Id";

/// Carried by the message with which a subscription is proved; such a message is nobody's news.
pub const PROBE: &str = "Pmp-Probe";

/// CloudEvents in binary mode (its NATS protocol binding: attributes as headers with the prefix `ce-`).
pub const CLOUD_EVENT_SPEC_VERSION: &str = "ce-specversion";
pub const CLOUD_EVENT_ID: &str = "ce-id";
pub const CLOUD_EVENT_SOURCE: &str = "ce-source";
pub const CLOUD_EVENT_TYPE: &str = "ce-type";
pub const CLOUD_EVENT_SUBJECT: &str = "ce-subject";
pub const CLOUD_EVENT_TIME: &str = "ce-time";
