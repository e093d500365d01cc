//! Streams events to clients.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{
    protection::{EVERY, Pass},
    routes::Admitted,
};
use crate::api::{Feed, Filter};

/// The most lines that wait for one subscriber.
const QUEUE: usize = 256;

/// A body that lasts while there is something to send. It counts as a request all the time.
pub(super) struct Stream {
    queue: mpsc::Receiver<Bytes>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl hyper::body::Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.queue.poll_recv(context).map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

/// A client that follows events.
pub(super) struct Subscriber {
    /// Selects the events that it gets.
    pub(super) filter: Filter,
    /// Whether it may see paths of files.
    pub(super) paths: bool,
    /// Its permission, if it needed one.
    pub(super) admitted: Option<Admitted>,
}

impl Subscriber {
    /// Sends events to the subscriber from now on.
    pub(super) fn follow(self, feed: &Feed) -> Stream {
        let Self { filter, paths, admitted } = self;
        let (permit, pass) = admitted.map(|Admitted { permit, pass }| (permit, pass)).unzip();
        let (sender, queue) = mpsc::channel(QUEUE);
        let mut events = feed.subscribe();
        tokio::spawn(async move {
            let ended = ended(pass);
            tokio::pin!(ended);
            loop {
                let line = tokio::select! {
                    line = events.next() => line,
                    () = sender.closed() => None,
                    () = &mut ended => None,
                };
                let Some(line) = line else { return };
                if !filter.matches(&line.notice) {
                    continue;
                }
                let json = if paths { line.json } else { line.without_paths() };
                if sender.send(json).await.is_err() {
                    return;
                }
            }
        });
        Stream { queue, _permit: permit }
    }
}

/// Waits until the subscriber's password or certificate isn't accepted any more.
async fn ended(pass: Option<Pass>) {
    match pass {
        Some(pass) => {
            while pass.holds().await {
                tokio::time::sleep(EVERY).await;
            }
        }
        None => std::future::pending().await,
    }
}
