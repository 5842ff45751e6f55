//! Kernels in the cache: where the parts of one lie, and which of them are complete.
//!
//! Comes in: the environment (`LUCOS_CACHE`, `XDG_CACHE_HOME`, `HOME`). Decided: the cache folder; a kernel counts only
//! when its marker file says that set-up came to its end. Goes out: [`Kernel`], paths by part.

use std::fs;
use std::path::{Path, PathBuf};

/// Written last when a kernel is placed in the cache.
pub const MARKER: &str = ".complete";
/// Written when only the source is there.
pub const SOURCE_MARKER: &str = ".complete-source";
/// Written when the large debug part is there too (`vmlinux`, `System.map`).
pub const DEBUG_MARKER: &str = ".complete-debug";

/// Why a kernel in the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No folder to keep things in.
    #[error("no cache folder: set LUCOS_CACHE to a folder with 6 GB of room, or HOME")]
    NoCache,
    /// A folder without the expected kernel image.
    #[error("{path}: expected one vmlinuz-RELEASE, found {found}; remove the folder and run `cargo xtask setup`")]
    NoImage {
        /// The folder.
        path: PathBuf,
        /// How many there are.
        found: usize,
    },
    /// A symbol that every kernel has.
    #[error("{path} has no symbol {symbol}")]
    Symbol {
        /// The table.
        path: PathBuf,
        /// The symbol.
        symbol: String,
    },
    /// A folder or file that cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The cache folder.
///
/// # Errors
/// [`KernelError::NoCache`] when the environment names none.
pub fn cache_dir() -> Result<PathBuf, KernelError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("LUCOS_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("lucos")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/lucos")))
        .ok_or(KernelError::NoCache)
}

/// A kernel of the distribution in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Folder that holds its parts.
    pub dir: PathBuf,
    /// Version of the package, also the folder's name (`6.1.190-1`).
    pub version: String,
    /// Release, as `uname -r` prints it.
    pub release: String,
}

impl Kernel {
    /// The kernel in `dir`; its release is taken from the name of the image.
    ///
    /// # Errors
    /// [`KernelError`] when the folder cannot be read or does not hold exactly one image.
    pub fn open(dir: &Path) -> Result<Self, KernelError> {
        let io = |source| KernelError::Io { path: dir.to_owned(), source };
        let mut releases = Vec::new();
        for entry in fs::read_dir(dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            if let Some(release) = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-")) {
                releases.push(release.to_owned());
            }
        }
        let [release] = releases.as_slice() else {
            return Err(KernelError::NoImage { path: dir.to_owned(), found: releases.len() });
        };
        let version = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { dir: dir.to_owned(), version, release: release.clone() })
    }

    /// The bootable image.
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join(format!("vmlinuz-{}", self.release))
    }

    /// The ELF image with debug information.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join(format!("vmlinux-{}", self.release))
    }

    /// The real symbol table.
    pub fn system_map(&self) -> PathBuf {
        self.dir.join(format!("System.map-{}", self.release))
    }

    /// The build configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join(format!("config-{}", self.release))
    }

    /// The source tree, never modified.
    pub fn source(&self) -> PathBuf {
        self.dir.join("source")
    }

    /// A loadable module of it, by path below its folder of modules (`kernel/fs/nls/nls_utf8.ko`).
    pub fn module(&self, path: &str) -> PathBuf {
        self.dir.join("lib/modules").join(&self.release).join(path)
    }

    /// Link address of a symbol, from `System.map`.
    ///
    /// # Errors
    /// [`KernelError`] when the table cannot be read or lacks the symbol.
    pub fn symbol(&self, name: &str) -> Result<u64, KernelError> {
        let path = self.system_map();
        let text = fs::read_to_string(&path).map_err(|source| KernelError::Io { path: path.clone(), source })?;
        let found = text.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?;
            (words.nth(1)? == name).then(|| u64::from_str_radix(address, 16).ok())?
        });
        found.ok_or_else(|| KernelError::Symbol { path, symbol: name.to_owned() })
    }

    /// Image, configuration and source are there.
    pub fn is_complete(&self) -> bool {
        self.dir.join(MARKER).exists()
    }

    /// `vmlinux` and `System.map` are there as well.
    pub fn has_debug(&self) -> bool {
        self.dir.join(DEBUG_MARKER).exists()
    }
}

/// The two kernels that demo and tests work with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The one that is booted and updated; with debug part.
    pub older: Kernel,
    /// The next release; with debug part as well.
    pub newer: Kernel,
}
