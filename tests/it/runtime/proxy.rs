//! A proxy before a server that can swallow: connections stay open, and what is written into them goes nowhere.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    task::JoinHandle,
};

pub struct Proxy {
    pub url: String,
    swallows: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Before the server of this `nats://` address.
    pub async fn before(url: &str) -> Self {
        let to: SocketAddr = url.strip_prefix("nats://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let swallows = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let swallows = Arc::clone(&swallows);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let Ok(server) = TcpStream::connect(to).await else { continue };
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    tokio::spawn(pass_on(from_client, to_server, Arc::clone(&swallows)));
                    tokio::spawn(pass_on(from_server, to_client, Arc::clone(&swallows)));
                }
            }
        });
        Self { url, swallows, task }
    }

    /// From now on nothing passes, on old connections and on new ones.
    pub fn swallow(&self) {
        self.swallows.store(true, Ordering::SeqCst);
    }

    /// New connections work again. On the old ones the stream has a hole, so they end.
    pub fn mend(&self) {
        self.swallows.store(false, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass_on(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallows: Arc<AtomicBool>) {
    let mut buffer = vec![0; 1 << 16];
    let mut has_a_hole = false;
    while let Ok(size @ 1..) = from.read(&mut buffer).await {
        has_a_hole |= swallows.load(Ordering::SeqCst);
        if has_a_hole {
            if swallows.load(Ordering::SeqCst) {
                continue;
            }
            return;
        }
        if to.write_all(&buffer[..size]).await.is_err() {
            return;
        }
    }
}
