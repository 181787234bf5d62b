//! How large a document may be. Every bound of the module stands here, with what it was estimated from.

/// Of a text, in bytes. 200,000 phases of 320 bytes each; a resource in etcd is forty times smaller.
pub const TEXT_BYTES_MAX: usize = 64 << 20;

/// Values and keys of a text (aliases count as often as they are used). 200,000 phases of 40; 64 bytes of memory each.
pub const NODES_MAX: u32 = 8_000_000;

/// Values and keys of a text that is shorter than this, whatever its aliases unfold to; a longer one may have one a byte,
/// which without aliases is more than there can be. So a text takes at most some hundred times its size.
pub const NODES_FREE: u32 = 200_000;

/// Objects and lists inside each other. Our own fields need 7 levels, whatever stands under `x-` may use the rest.
pub const DEPTH_MAX: u8 = 64;

/// The same of a YAML text. Its library uses up to 30 KB of stack a level in a debug build, 40 KB where places are looked
/// up, and a worker thread has 2 MB.
pub const YAML_DEPTH_MAX: u8 = 32;

/// Phases of a manifest: forty times what fits into etcd, ten times what anybody was seen to write.
pub const PHASES_MAX: usize = 200_000;

/// Problems that are listed; a last one counts the rest. Nobody mends more in one sitting, and a status holds fewer.
pub const PROBLEMS_MAX: usize = 1_000;

/// Members of a cycle that its message names; the middle of a longer one is counted.
pub const CYCLE_MEMBERS_MAX: usize = 1_000;

/// `description`, in bytes: a page.
pub const DESCRIPTION_BYTES_MAX: usize = 16 << 10;

/// Lines of one handler's `message`.
pub const MESSAGES_MAX: usize = 64;

/// One line of `message`, in bytes; an Event holds 1,024.
pub const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// Addresses, and channels, of one handler.
pub const RECIPIENTS_MAX: usize = 64;

/// An email address, in bytes (RFC 5321: 64 before the `@`, 255 after it).
pub const EMAIL_BYTES_MAX: usize = 320;

/// A channel name, in bytes (Slack allows 80 characters).
pub const CHANNEL_BYTES_MAX: usize = 320;

/// Labels of one selector or handler.
pub const LABELS_MAX: usize = 64;

/// Tries of one run: at a second each, eleven days.
pub const ATTEMPTS_MAX: u32 = 1_000_000;

/// Entries of one `x-waitFor`: each is a watch on another resource.
pub const EXTERNAL_WAITS_MAX: usize = 64;

/// Letters compared, squared, in search of what a wrong id may have meant: about 0.2 s for a whole document.
pub(super) const SUGGESTION_WORK_MAX: usize = 50_000_000;
