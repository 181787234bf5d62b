//! How a connection stands, as everyone who depends on it sees it.

/// The state of the connection and a count of the moments at which messages may have been missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub state: LinkState,
    /// 0 before the first connection; rises at each (re)connect and after each loss in a full queue. Whoever sees it
    /// rise has to ask again for whatever it believes.
    pub epoch: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    Connected,
    /// `reason` is for people: what the last try failed on, server by server.
    Disconnected {
        reason: String,
    },
}

impl Link {
    pub fn is_connected(&self) -> bool {
        self.state == LinkState::Connected
    }
}
