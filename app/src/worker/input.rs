//! Standard input, by which whoever started a worker says that it is still there, and where the other workers are.

use tokio::sync::watch;

use crate::afd::Place;

/// What comes in.
#[derive(Debug)]
pub(super) struct Input {
    /// The last line's places. The sender is gone when there will be no more lines.
    places: Option<watch::Receiver<Vec<Place>>>,
}

impl Input {
    /// Reads it to its end, if it is `watched`.
    pub(super) fn read(watched: bool) -> Self {
        if !watched {
            return Self { places: None };
        }
        let (listed, places) = watch::channel(vec![]);
        // A blocking task would hold the runtime's end up.
        std::thread::spawn(move || {
            // What cannot be read has ended as well.
            for line in std::io::stdin().lines().map_while(Result::ok) {
                let list: Vec<_> =
                    line.split(',').filter(|place| !place.is_empty()).map(str::to_owned).collect();
                match Place::list(&list) {
                    Ok(places) => drop(listed.send_replace(places)),
                    Err(error) => tracing::error!(%error, "a list of workers on standard input"),
                }
            }
        });
        Self { places: Some(places) }
    }

    /// Places that it lists: the last line's, separated by commas; none if it is not watched.
    pub(super) fn places(&self) -> watch::Receiver<Vec<Place>> {
        self.places.clone().unwrap_or_else(|| watch::Sender::default().subscribe())
    }

    /// Waits for its end; for ever, if it is not watched.
    pub(super) async fn ended(&self) {
        match self.places.clone() {
            Some(mut places) => while places.changed().await.is_ok() {},
            None => std::future::pending().await,
        }
    }
}
