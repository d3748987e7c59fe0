//! A file behind an address, read in order from any byte on.

use std::time::Duration;

use futures_util::future::{Either, select};
use js_sys::{Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use web_sys::{AbortController, ReadableStreamDefaultReader, RequestCache, RequestInit, Response};

use super::failure::{Failed, failed, other};
use super::js::{scope, sleep, text, wait};
use super::recipe::is_sha256;
use crate::protocol::FailureKind;

/// How long a server may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// A response that is being read. Dropping it ends the connection.
#[derive(Debug)]
pub(super) struct Remote {
    url: String,
    /// Bytes of the whole file.
    pub(super) total: u64,
    /// `ETag`, else `Last-Modified`, as far as the browser shows them.
    pub(super) validator: Option<String>,
    /// What the Hugging Face hub says the file's SHA-256 is.
    pub(super) sha256: Option<String>,
    reader: ReadableStreamDefaultReader,
    controller: AbortController,
    /// Bytes to pass over: the server began before the byte that was asked for.
    skip: u64,
}

impl Remote {
    /// Asks for a file from byte `start` on; none when there is no such file.
    pub(super) async fn open(url: &str, start: u64) -> Result<Option<Self>, Failed> {
        let broken = |error: &JsValue| network(format!("{url} cannot be reached: {}", text(error)));
        let controller = AbortController::new().map_err(|error| broken(&error))?;
        let init = RequestInit::new();
        init.set_signal(Some(&controller.signal()));
        let headers = web_sys::Headers::new().map_err(|error| broken(&error))?;
        // Also for the whole: what is ranged is not compressed, so that lengths are those of the file.
        headers.set("Range", &format!("bytes={start}-")).map_err(|error| broken(&error))?;
        init.set_headers(&headers);
        // What is kept is kept once.
        init.set_cache(RequestCache::NoStore);
        let response = scope().fetch_with_str_and_init(url, &init);
        let response: Response = patient(wait(response), url).await?.map_err(|error| broken(&error))?;
        let header = |name: &str| response.headers().get(name).ok().flatten();
        let length = header("content-length").and_then(|length| length.parse::<u64>().ok());
        let (skip, total) = match response.status() {
            200 => (start, length),
            206 => (0, length.map(|length| length + start)),
            404 | 410 => return Ok(None),
            // There is nothing behind the start: the file is shorter now than what is kept of it.
            416 if start > 0 => return Box::pin(Self::open(url, 0)).await,
            401 | 403 => {
                let message =
                    "the server does not let this page have it; download it by hand and choose the file";
                return Err(other(format!("{url}: {message} (status {})", response.status())));
            }
            status => return Err(network(format!("{url}: the server answered with status {status}"))),
        };
        let total =
            total.ok_or_else(|| other(format!("{url}: the server does not say how long the file is")))?;
        let Some(body) = response.body() else { return Err(network(format!("{url}: the answer is empty"))) };
        let reader = ReadableStreamDefaultReader::new(&body).map_err(|error| broken(&error))?;
        Ok(Some(Self {
            url: url.to_owned(),
            total,
            validator: header("etag").or_else(|| header("last-modified")),
            sha256: header("x-linked-etag")
                .map(|tag| tag.trim_matches('"').to_ascii_lowercase())
                .filter(|tag| is_sha256(tag)),
            reader,
            controller,
            skip,
        }))
    }

    /// The next bytes; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, Failed> {
        loop {
            let read: JsValue = patient(wait(self.reader.read()), &self.url)
                .await?
                .map_err(|error| network(format!("{}: the connection broke: {}", self.url, text(&error))))?;
            if Reflect::get(&read, &"done".into()).is_ok_and(|done| done.is_truthy()) {
                return Ok(None);
            }
            let bytes = Reflect::get(&read, &"value".into()).unwrap_or_default();
            let bytes = bytes.unchecked_into::<Uint8Array>();
            let skip = self.skip.min(u64::from(bytes.length())) as u32;
            self.skip -= u64::from(skip);
            if skip < bytes.length() {
                return Ok(Some(bytes.subarray(skip, bytes.length()).to_vec()));
            }
        }
    }

    /// Reads on until `bytes` has `wanted` bytes, or all there are.
    pub(super) async fn fill(&mut self, bytes: &mut Vec<u8>, wanted: u64) -> Result<(), Failed> {
        while (bytes.len() as u64) < wanted.min(self.total) {
            let Some(more) = self.next().await? else {
                return Err(network(format!("{}: the connection ended early", self.url)));
            };
            bytes.extend_from_slice(&more);
        }
        Ok(())
    }

    /// Reads a small file whole.
    pub(super) async fn whole(mut self, most: u64) -> Result<Vec<u8>, Failed> {
        if self.total > most {
            return Err(other(format!("{} has {} bytes; at most {most} are read", self.url, self.total)));
        }
        let (mut bytes, total) = (vec![], self.total);
        self.fill(&mut bytes, total).await?;
        Ok(bytes)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.controller.abort();
    }
}

/// A failure that trying again may mend.
pub(super) fn network(message: String) -> Failed {
    failed(FailureKind::Network, message)
}

/// What comes, unless nothing does for too long.
async fn patient<T>(future: impl Future<Output = T>, url: &str) -> Result<T, Failed> {
    match select(Box::pin(future), Box::pin(sleep(PATIENCE))).await {
        Either::Left((value, _)) => Ok(value),
        Either::Right(_) => Err(network(format!("{url}: nothing came for {} seconds", PATIENCE.as_secs()))),
    }
}
