//! The cache, saved when the gateway stops and loaded when it starts, so that after a restart callers do
//! not all ask Rails at once, and known keys stay known if Rails is down just then.
//!
//! A file says who may log in, so it is trusted only if its MAC is right: the MAC key is derived from the
//! secret of GitLab Shell and from where Rails is. And it is used once: it is removed before it is read,
//! since what is purged later must not come back after a crash. A loaded answer is as old as it is, the
//! time in between included. Negative answers are not saved: they live for seconds.

pub mod error;
mod file;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use http::StatusCode;

use self::error::{Damage, LoadError};
use self::file::{Frame, SavedEntry, SnapshotReader, SnapshotWriter};
use super::Cache;
use super::compact::CompactText;
use super::entry::{Entry, MARKED_STALE};
use super::headers::ReplayedHeaders;
use super::key::Key;
use super::kind::EntryKind;
use super::lifetimes::{AgeLimits, Lifetimes};
use crate::secret::ShellSecret;

/// Where the cache is saved, and the key of the MAC by which a file is known as this gateway's own.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    mac_key: hmac::Key,
}

/// When a snapshot is saved or loaded: for ages, and for what outlives the process.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotTime {
    /// On the monotonic clock.
    pub instant: Instant,
    /// Since the Unix epoch.
    pub unix: Duration,
}

/// What was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadSummary {
    /// Entries that are usable.
    pub entries: usize,
    /// Entries that are not usable any more, or for which there is no room.
    pub left_out: usize,
    /// How long ago they were saved.
    pub saved_ago: Duration,
}

impl SnapshotFile {
    /// A file at `path` of a gateway that has this secret. `upstream` is any text that tells one Rails
    /// from another.
    pub fn new(path: PathBuf, secret: &ShellSecret, upstream: &str) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret.as_hmac_key());
        let derived = hmac::sign(&secret, format!("railgate cache\0{upstream}").as_bytes());
        Self { path, mac_key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error if the file could not be written.
    pub fn check_writable(&self) -> io::Result<()> {
        file::check_replaceable(&self.path)?;
        drop(file::create(&self.temporary_path())?);
        std::fs::remove_file(self.temporary_path())
    }

    /// Beside the file, so that renaming it replaces the file atomically.
    fn temporary_path(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".part");
        name.into()
    }
}

impl Cache {
    /// Writes the usable positive entries to a file, which replaces the one that may be there once it is
    /// complete. Says how many entries there were.
    ///
    /// The file is not forced onto the disk: after a power cut its MAC is wrong, and it is not trusted.
    pub fn save(&self, to: &SnapshotFile, now: SnapshotTime) -> io::Result<usize> {
        file::check_replaceable(&to.path)?;
        let temporary = to.temporary_path();
        // Any other file that is there already is not removed.
        let created = file::create(&temporary)?;
        let saved = SnapshotWriter::start(created, &to.mac_key, now.unix)
            .and_then(|writer| self.write_entries(writer, now.instant))
            .and_then(|count| std::fs::rename(&temporary, &to.path).map(|()| count));
        if saved.is_err() {
            // The first error is the one to report.
            let _ = std::fs::remove_file(&temporary);
        }
        saved
    }

    fn write_entries(&self, mut writer: SnapshotWriter, now: Instant) -> io::Result<usize> {
        let mut count = 0;
        for (key, entry) in &self.positive {
            // The state of the instance is out of date within a second.
            if *key != Key::Instance && self.freshness(&entry, entry.age(now)).is_some() {
                let lasting = entry.lasting_age_limits();
                // The file has no other word for a doubt.
                let age_limits = if self.trust.is_trusted(entry.generation) {
                    lasting
                } else {
                    self.trust.limit(entry.generation, lasting).unwrap_or(lasting)
                };
                writer.write_entry(&key, (&entry, age_limits), now)?;
                count += 1;
            }
        }
        writer.finish()?;
        Ok(count)
    }

    /// Reads what was saved, and removes the file. To be called before anything is served: an entry that is
    /// purged must not be loaded afterwards. With `mark_stale`, all entries are stale, since changes
    /// may have been missed meanwhile.
    pub fn load(
        &self,
        from: &SnapshotFile,
        now: SnapshotTime,
        lifetimes: &Lifetimes,
        mark_stale: bool,
    ) -> Result<LoadSummary, LoadError> {
        let loaded = self.read_entries(from, now, lifetimes, mark_stale);
        if loaded.is_err() {
            // All of it or nothing.
            self.invalidate_all();
        }
        loaded
    }

    fn read_entries(
        &self,
        from: &SnapshotFile,
        now: SnapshotTime,
        lifetimes: &Lifetimes,
        mark_stale: bool,
    ) -> Result<LoadSummary, LoadError> {
        let mut reader = SnapshotReader::open(&from.path, &from.mac_key)?;
        let saved_ago = now.unix.checked_sub(reader.saved_at()).ok_or(LoadError::FromTheFuture)?;
        let mut summary = LoadSummary { saved_ago, ..LoadSummary::default() };
        let mut header_maps = Vec::new();
        while let Some(frame) = reader.read_frame()? {
            let saved = match frame {
                Frame::Headers(headers) => {
                    header_maps.push(self.header_interner.intern(&file::header_map(&headers)?));
                    continue;
                }
                Frame::Entry(saved) => saved,
            };
            let headers = header_maps.get(saved.header_map).ok_or(Damage::Frame)?;
            let age_limits = lifetimes.age_limits(saved.key.caching(), EntryKind::Positive);
            // Longer ago than this clock goes back: too old for anything.
            let requested_at = now.instant.checked_sub(saved.age.saturating_add(saved_ago));
            let entry = requested_at.and_then(|requested_at| {
                let entry =
                    restore_entry(&saved, headers, (requested_at, age_limits), self.trust.generation())?;
                if mark_stale {
                    entry.mark_stale();
                }
                let is_usable =
                    self.freshness(&entry, entry.age(now.instant)).is_some() && !age_limits.is_disabled();
                (is_usable && self.fits_into_store(&saved.key, &entry)).then_some(entry)
            });
            let Some(entry) = entry else {
                summary.left_out += 1;
                continue;
            };
            self.insert_uncounted(saved.key, Arc::new(entry));
            summary.entries += 1;
        }
        Ok(summary)
    }
}

/// What was saved, and for which Rails was asked at `requested_at`; no longer usable than
/// `max_age_limits` allow. `None` if it makes no sense.
fn restore_entry(
    saved: &SavedEntry<'_>,
    headers: &Arc<ReplayedHeaders>,
    (requested_at, max_age_limits): (Instant, AgeLimits),
    generation: u64,
) -> Option<Entry> {
    Some(Entry {
        kind: EntryKind::Positive,
        status: StatusCode::from_u16(saved.status).ok()?,
        headers: Arc::clone(headers),
        text: CompactText::new(saved.etag.map(|etag| &**etag), saved.body),
        requested_at,
        age_limits: saved.age_limits.min(max_age_limits),
        marks: AtomicU8::new(if saved.is_marked_stale { MARKED_STALE } else { 0 }),
        hits: AtomicU32::new(saved.hits),
        expires_at: saved.expires_at,
        subject_id: saved.subject_id,
        generation,
    })
}

#[cfg(test)]
mod tests;
