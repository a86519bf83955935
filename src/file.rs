//! Reads files that are small: the configuration, secrets, certificates.
//!
//! Differs from `std::fs::read` in that it ends, whatever has that name: a device that never does, a pipe that
//! nothing writes to, and a file that is too large are refused, each with what it is.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there or cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is something else.
    #[error("is {0}")]
    Kind(&'static str),
    /// It has more bytes than any such file.
    #[error("has more than {0} bytes")]
    TooLarge(usize),
    /// Whatever reads the file as text takes that for a part of it.
    #[error("begins with a byte order mark")]
    ByteOrderMark,
}

impl Error {
    /// What to do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "check the path, and that this user may read it",
            Self::Kind(_) => "name a regular file",
            Self::TooLarge(_) => "is it the right file?",
            Self::ByteOrderMark => "save it as UTF-8 without one (\"UTF-8\", not \"UTF-8 with BOM\")",
        }
    }
}

/// Reads a regular file, or a link to one, of `most` bytes at most. What is read is wiped when it is dropped,
/// since it may be a secret.
pub fn read(path: &Path, most: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
    // Before it is opened, which for some devices is an order.
    must_be_regular(&fs::metadata(path)?)?;
    // A pipe that has come there since is not waited for.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    must_be_regular(&metadata)?;
    // Room for all of it, so that no copy is left behind where it was too small.
    let length = usize::try_from(metadata.len()).unwrap_or(most).min(most);
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + 1));
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most { Err(Error::TooLarge(most)) } else { Ok(bytes) }
}

/// The same of a file that must not begin with a byte order mark.
pub fn read_unmarked(path: &Path, most: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
    let bytes = read(path, most)?;
    let is_marked = bytes.starts_with(UTF8_MARK) || is_utf16(&bytes);
    if is_marked { Err(Error::ByteOrderMark) } else { Ok(bytes) }
}

const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// Whether it says so, as editors of Windows do.
pub fn is_utf16(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff")
}

fn must_be_regular(there: &fs::Metadata) -> Result<(), Error> {
    let kind = there.file_type();
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    Err(Error::Kind(what))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    #[test]
    fn whatever_has_the_name_reading_ends() {
        let dir = std::env::temp_dir().join(format!("railgate-file-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let at = |name: &str| dir.join(name);
        for (name, text) in [("full", &b"12345"[..]), ("large", b"123456"), ("empty", b"")] {
            fs::write(at(name), text).unwrap();
        }
        fs::write(at("marked"), "\u{feff}a").unwrap();
        fs::write(at("utf16"), b"\xff\xfea\0").unwrap();
        // Sparse.
        fs::File::create(at("huge")).unwrap().set_len(1 << 40).unwrap();
        assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        let _socket = UnixListener::bind(at("socket")).unwrap();
        for (link, target) in
            [("link", "full"), ("device", "/dev/zero"), ("nowhere", "missing"), ("loop", "loop")]
        {
            symlink(target, at(link)).unwrap();
        }
        for (name, told) in [
            ("full", ""),
            ("link", ""),
            ("empty", ""),
            ("large", "has more than 5 bytes"),
            ("huge", "has more than 5 bytes"),
            ("pipe", "is a pipe"),
            ("socket", "is a socket"),
            ("device", "is a device"),
            (".", "is a directory"),
            ("missing", "cannot be read: No such file or directory (os error 2)"),
            ("nowhere", "cannot be read: No such file or directory (os error 2)"),
            ("loop", "cannot be read: Too many levels of symbolic links (os error 40)"),
        ] {
            let read = read(&at(name), 5).map_or_else(|error| error.to_string(), |_| String::new());
            assert_eq!(read, told, "{name}");
        }
        for device in ["/dev/zero", "/dev/null", "/dev/tty", "/dev/random"] {
            assert!(matches!(read(Path::new(device), 5), Err(Error::Kind("a device"))), "{device}");
        }
        assert_eq!(*read(&at("link"), 5).unwrap(), b"12345");
        // As large as it is, although its length is said to be 0.
        assert!(read(Path::new("/proc/self/cmdline"), 1 << 20).unwrap().len() > 1);
        assert!(read(&at("marked"), 5).is_ok());
        for name in ["marked", "utf16"] {
            assert!(matches!(read_unmarked(&at(name), 5), Err(Error::ByteOrderMark)), "{name}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
