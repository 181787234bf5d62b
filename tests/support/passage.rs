//! A passage of bytes in front of a server, which can become a black hole.
//!
//! It exists because a link that is dead while both ends are alive cannot be made by stopping either of them: nobody
//! hears a goodbye, every write succeeds, and nothing comes back. What was swallowed is gone, so connections that lost
//! bytes end when the passage opens again, as they do when a router has forgotten them.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A listener on loopback whose connections lead to one server. Dropping it ends them all.
pub struct Passage {
    /// Where it listens.
    pub address: SocketAddr,
    way: watch::Sender<Way>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Swallows,
}

impl Passage {
    /// A passage to this address on loopback, open.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let (way, seen) = watch::channel(Way::Open);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(lead(client, server, seen.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { address, way, task }
    }

    /// From now on connections stay open, new ones are taken, and not a byte comes out on the other side.
    pub fn swallow(&self) {
        self.way.send_replace(Way::Swallows);
    }

    /// Ends the connections that lost bytes; those that are made from now on lead to the server.
    pub fn open(&self) {
        self.way.send_replace(Way::Open);
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn lead(mut client: TcpStream, server: SocketAddr, mut way: watch::Receiver<Way>) {
    if *way.borrow_and_update() == Way::Open {
        let Ok(mut server) = TcpStream::connect(server).await else { return };
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = way.wait_for(|way| *way == Way::Swallows) => {}
        }
        let _ = tokio::join!(discard(&mut client, way.clone()), discard(&mut server, way));
    } else {
        discard(&mut client, way).await;
    }
}

/// Reads and throws away until the passage is open again; also the end of the other side is told to nobody.
async fn discard(from: &mut TcpStream, mut way: watch::Receiver<Way>) {
    let reading = async {
        let mut bytes = vec![0; 16 * 1024];
        while from.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = reading => {}
        _ = way.wait_for(|way| *way == Way::Open) => {}
    }
}
