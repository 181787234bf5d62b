//! What is left of a run when its processes are killed, stopped or cut off: real servers, a real operator, two runtimes.
//!
//! A run has 200 phases of 20 to 200 ms. Every phase appends a line to a file when it begins and one when it ends, with
//! the attempt it runs for and the runtime that runs it, so that "once" is counted where the work is done and by nobody
//! who has a stake in it. The operator reaches the API server over [`crate::support::SlowApi`]: what is stored lags behind
//! what has happened by a second and more, and that is what a crash forgets.
//!
//! Every test ends with a line of figures on standard error, past what the test harness catches.

mod cuts;
mod figures;
mod kills;
mod ledger;
mod pauses;
mod rivals;
mod scene;
mod soak;
