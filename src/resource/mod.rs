//! The resource: what people write into a `PhaseManifest`, what we write into its status, and the way between that
//! status and the engine's [`crate::engine::Record`].
//!
//! DATA: no server is spoken to, no clock is read, nothing waits. Types, conversions and the generated CRD; whoever
//! talks to the API server takes these and does the talking. The schema forgives nothing outside `spec.phases`, and
//! inside it refuses nothing that `manifest` could place.

mod conditions;
mod crd;
mod orders;
mod outcomes;
mod phase_schema;
mod phases;
mod project;
mod restore;
mod settings;
mod spec;
mod status;
mod written;

pub use conditions::*;
pub use crd::{crd, crd_yaml};
pub use orders::{ManifestSource, Orders};
pub use phases::Phases;
pub use project::{Error as ProjectError, Frame, STATUS_BYTES_MAX, collapsed, project, status_bytes_max};
pub use restore::{Error as RestoreError, restore};
pub use settings::read_settings;
pub use spec::*;
pub use status::*;
pub use written::{Moment, Number, Span};
