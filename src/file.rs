//! Reads small files: the configuration, secrets, certificates.
//!
//! Differs from `std::fs::read` in that it always ends: a device, a pipe that nothing writes to, and a file
//! that is too large are refused, with an error that names the kind.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It does not exist or cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is not a regular file but this.
    #[error("is {0}")]
    Kind(&'static str),
    /// It has more bytes than this limit.
    #[error("has more than {0} bytes")]
    TooLarge(usize),
    /// Readers of text would take the mark for a part of it.
    #[error("begins with a byte order mark")]
    ByteOrderMark,
}

impl Error {
    /// How to fix it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "check the path, and that this user may read it",
            Self::Kind(_) => "name a regular file",
            Self::TooLarge(_) => "is it the right file?",
            Self::ByteOrderMark => "save it as UTF-8 without one (\"UTF-8\", not \"UTF-8 with BOM\")",
        }
    }
}

/// Reads a regular file, or a link to one, of up to `max_bytes`. The bytes are wiped when they are dropped,
/// since they may be a secret.
pub fn read(path: &Path, max_bytes: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
    // Before it is opened, since opening some devices has an effect.
    ensure_regular(&fs::metadata(path)?)?;
    // Does not block on a pipe that has replaced the file since.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    ensure_regular(&metadata)?;
    // Room for all of it: growing would leave copies behind that are not wiped.
    let length = usize::try_from(metadata.len()).unwrap_or(max_bytes).min(max_bytes);
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + 1));
    file.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > max_bytes { Err(Error::TooLarge(max_bytes)) } else { Ok(bytes) }
}

/// Reads a file that must not begin with a byte order mark.
pub fn read_without_bom(path: &Path, max_bytes: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
    let bytes = read(path, max_bytes)?;
    let has_bom = bytes.starts_with(UTF8_BOM) || is_utf16(&bytes);
    if has_bom { Err(Error::ByteOrderMark) } else { Ok(bytes) }
}

const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";

/// Whether it begins with a byte order mark of UTF-16, as editors on Windows write it.
pub fn is_utf16(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff")
}

fn ensure_regular(metadata: &fs::Metadata) -> Result<(), Error> {
    let kind = metadata.file_type();
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
    fn reading_ends_for_every_kind_of_file() {
        let dir = std::env::temp_dir().join(format!("railgate-file-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let at = |name: &str| dir.join(name);
        for (name, text) in [("full", &b"12345"[..]), ("large", b"123456"), ("empty", b"")] {
            fs::write(at(name), text).unwrap();
        }
        fs::write(at("with-bom"), "\u{feff}a").unwrap();
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
        for (name, expected) in [
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
            assert_eq!(read, expected, "{name}");
        }
        for device in ["/dev/zero", "/dev/null", "/dev/tty", "/dev/random"] {
            assert!(matches!(read(Path::new(device), 5), Err(Error::Kind("a device"))), "{device}");
        }
        assert_eq!(*read(&at("link"), 5).unwrap(), b"12345");
        // Files in /proc have a length of 0, and more content.
        assert!(read(Path::new("/proc/self/cmdline"), 1 << 20).unwrap().len() > 1);
        assert!(read(&at("with-bom"), 5).is_ok());
        for name in ["with-bom", "utf16"] {
            assert!(matches!(read_without_bom(&at(name), 5), Err(Error::ByteOrderMark)), "{name}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
