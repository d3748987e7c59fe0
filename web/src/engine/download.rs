//! One file from the network into the browser's storage: goes on where it stopped, and believes nothing it has not hashed.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use web_sys::File;

use super::failure::{Failed, failed, other};
use super::journal::{COMPLETE, Header, Journal, PIECE, piece};
use super::js::{self, hex, sha256, sleep};
use super::recipe::FileSpec;
use super::remote::{Remote, network};
use super::store::{Access, Folder, journal_name};
use crate::protocol::{FailureKind, Stage};

/// How often a broken connection is tried again before the user is asked to.
const ATTEMPTS: u32 = 5;
/// Before the second attempt; each further one waits twice as long.
const PAUSE: Duration = Duration::from_millis(500);

/// Told of each piece: what is being done, and how many bytes of the file are.
pub(super) type Report<'a> = dyn FnMut(Stage, u64) + 'a;

/// Sees to it that a file is there, whole and right.
///
/// # Errors
/// [`FailureKind::Network`] when the connection breaks for good: what is kept stays. [`FailureKind::Corrupt`] when the file
/// is not the one that was announced: it is deleted.
pub(super) async fn fetch(folder: &Folder, spec: &FileSpec, report: &mut Report<'_>) -> Result<(), Failed> {
    let kept = folder.journal(&spec.name).await?.filter(|kept| kept.is_of(&spec.url, spec.sha256.as_deref()));
    let mut journal = match kept {
        Some(mut journal) => {
            if let Some(bad) = damage(folder, &spec.name, &journal, report).await? {
                journal.cut(bad);
            }
            Some(journal)
        }
        None => None,
    };
    if journal.as_ref().is_some_and(|journal| journal.complete) {
        return Ok(());
    }
    if journal.as_ref().is_none_or(|journal| journal.kept() < journal.header.total) {
        journal = Some(transfer(folder, spec, journal, report).await?);
    }
    let Some(journal) = journal else { return Ok(()) };
    compare(folder, spec, &journal, report).await?;
    let log = folder.access(&journal_name(&spec.name)).await?;
    log.write(journal.text().len() as u64, COMPLETE.as_bytes())
}

/// The first piece of a file that is not what its journal says, if there is one.
pub(super) async fn damage(
    folder: &Folder,
    name: &str,
    journal: &Journal,
    report: &mut Report<'_>,
) -> Result<Option<usize>, Failed> {
    let Some(file) = folder.file(name).await? else { return Ok(Some(0)) };
    for (index, hash) in journal.pieces.iter().enumerate() {
        let range = piece(index, journal.header.total);
        report(Stage::Check, range.start);
        if file.size() < range.end as f64 || digest(&read(&file, range).await?).await? != *hash {
            return Ok(Some(index));
        }
    }
    report(Stage::Check, journal.kept());
    Ok(None)
}

/// Compares the whole file with the hash that was announced, if one was.
async fn compare(
    folder: &Folder,
    spec: &FileSpec,
    journal: &Journal,
    report: &mut Report<'_>,
) -> Result<(), Failed> {
    let Some(expected) = &journal.header.sha256 else { return Ok(()) };
    let Some(file) = folder.file(&spec.name).await? else {
        return Err(other(format!("{} is gone", spec.name)));
    };
    let mut hasher = Sha256::new();
    for index in 0..journal.pieces.len() {
        let range = piece(index, journal.header.total);
        report(Stage::Check, range.start);
        hasher.update(read(&file, range).await?);
    }
    let found = hex(&hasher.finalize());
    if found == *expected {
        return Ok(());
    }
    folder.remove(&spec.name).await;
    let message = format!(
        "{} is not the file that was announced, and has been deleted: its SHA-256 is {found}, but must be {expected}",
        spec.url
    );
    Err(failed(FailureKind::Corrupt, message))
}

/// Downloads what is missing.
async fn transfer(
    folder: &Folder,
    spec: &FileSpec,
    journal: Option<Journal>,
    report: &mut Report<'_>,
) -> Result<Journal, Failed> {
    let (file, log) = (folder.access(&spec.name).await?, folder.access(&journal_name(&spec.name)).await?);
    let mut transfer = Transfer { spec, file, log, journal: journal.unwrap_or_default() };
    // What was cut off must not stand behind what comes.
    transfer.rewrite()?;
    let mut attempt = 0;
    loop {
        let before = transfer.journal.kept();
        let error = match transfer.attempt(report).await {
            Ok(()) => return Ok(transfer.journal),
            Err(error) if error.kind == FailureKind::Network => error,
            Err(error) => return Err(error),
        };
        attempt = if transfer.journal.kept() > before { 1 } else { attempt + 1 };
        if attempt >= ATTEMPTS {
            let (kept, total) = (transfer.journal.kept(), transfer.journal.header.total);
            let more = format!("{kept} of {total} bytes of {} are kept; load it again to go on", spec.name);
            return Err(network(format!("{}; {more}", error.message)));
        }
        sleep(PAUSE * 2u32.pow(attempt - 1)).await;
    }
}

/// A download in the making.
struct Transfer<'a> {
    spec: &'a FileSpec,
    file: Access,
    log: Access,
    journal: Journal,
}

impl Transfer<'_> {
    /// Writes the journal as it stands.
    fn rewrite(&self) -> Result<(), Failed> {
        self.log.truncate(0)?;
        self.file.truncate(self.journal.kept())?;
        if self.journal.header == Header::default() {
            return Ok(());
        }
        self.log.write(0, self.journal.text().as_bytes())
    }

    /// Goes on until the end, or until the connection breaks.
    async fn attempt(&mut self, report: &mut Report<'_>) -> Result<(), Failed> {
        let mut remote = self.open(self.journal.kept()).await?;
        if !self.journal.goes_on(remote.total, remote.validator.as_deref()) {
            if self.journal.kept() > 0 {
                // Another file lies there now.
                remote = self.open(0).await?;
            }
            let header = Header {
                url: self.spec.url.clone(),
                total: remote.total,
                validator: remote.validator.clone(),
                sha256: self.spec.sha256.clone().or_else(|| remote.sha256.clone()),
            };
            self.journal = Journal { header, ..Journal::default() };
            self.rewrite()?;
        }
        let total = self.journal.header.total;
        let mut bytes = vec![];
        while self.journal.kept() < total {
            let start = self.journal.kept();
            let wanted = PIECE.min(total - start);
            while (bytes.len() as u64) < wanted {
                let Some(more) = remote.next().await? else {
                    return Err(network(format!("{}: the connection ended early", self.spec.url)));
                };
                bytes.extend_from_slice(&more);
                report(Stage::Download, (start + bytes.len() as u64).min(total));
            }
            let rest = bytes.split_off(wanted as usize);
            self.keep(&bytes).await?;
            bytes = rest;
        }
        Ok(())
    }

    /// Writes a piece, and only then says that it is there.
    async fn keep(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let hash = digest(bytes).await?;
        self.file.write(self.journal.kept(), bytes)?;
        let end = self.journal.text().len() as u64;
        self.log.write(end, format!("{hash}\n").as_bytes())?;
        self.journal.pieces.push(hash);
        Ok(())
    }

    async fn open(&self, start: u64) -> Result<Remote, Failed> {
        let url = &self.spec.url;
        Remote::open(url, start).await?.ok_or_else(|| other(format!("there is no file at {url}")))
    }
}

async fn digest(bytes: &[u8]) -> Result<String, Failed> {
    sha256(bytes)
        .await
        .map_err(|error| other(format!("this browser computes no SHA-256: {}", js::text(&error))))
}

/// Bytes of a kept file, without holding up the event loop.
async fn read(file: &File, range: std::ops::Range<u64>) -> Result<Vec<u8>, Failed> {
    let failed = |error| other(format!("{} cannot be read: {}", file.name(), js::text(&error)));
    let slice = file.slice_with_f64_and_f64(range.start as f64, range.end as f64).map_err(failed)?;
    let buffer: js_sys::ArrayBuffer = js::wait(slice.array_buffer()).await.map_err(failed)?;
    Ok(js_sys::Uint8Array::new(&buffer).to_vec())
}
