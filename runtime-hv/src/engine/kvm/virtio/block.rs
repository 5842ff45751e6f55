//! The block device (VIRTIO 1.2, 5.2): a raw image file or a block device of the host.
//!
//! Comes in: requests of 512-byte sectors. Decided: whether a request lies within the disk and may be done. Goes out: data
//! straight between the file and guest memory, and a status for each request. What the guest flushes is on the host's
//! storage when the flush is answered; a driver that does not know flushes has every write there when it is answered.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, fallocate, fcntl};
use nix::libc;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::ring::{Buffers, Chain, Ring};
use super::{Device, DeviceError, Watch};

/// Bytes of a sector, whatever the disk's own are (VIRTIO 1.2, 5.2.4).
const SECTOR: u64 = 512;
/// Entries of the request queue.
const QUEUE_SIZE: u16 = 256;
/// Bytes of a request's header: type, reserved, first sector.
const HEADER: u64 = 16;
/// Bytes of a range in a request to discard or to write zeroes: first sector, sectors, flags.
const RANGE: u64 = 16;
/// Ranges in one such request.
const MOST_RANGES: u32 = 16;
/// Sectors of one such range: 32 MiB, which takes a moment at most where the host has to write the zeroes.
const MOST_RANGE_SECTORS: u32 = 0x1_0000;

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// It cannot be opened.
    #[error("the disk `{path}` cannot be opened for {purpose}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// `reading`, or `reading and writing`.
        purpose: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// It is a folder, a pipe or the like.
    #[error("the disk `{path}` is neither a file nor a block device; name a raw image")]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Another program uses it.
    #[error(
        "the disk `{path}` is in use by another virtual machine; end that one, or give both the disk read-only, or make a copy"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be locked, so nobody could tell whether it is in use.
    #[error("the disk `{path}` cannot be locked: {source}; move it to a file system with locks")]
    Lock {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is not a whole number of sectors.
    #[error(
        "the disk `{path}` has {size} bytes, which is not a multiple of 512 above 0; expected a raw image (`qemu-img convert -O raw` \
         makes one from other formats, `truncate -s %512` fills up the last sector)"
    )]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// It is an image in another format.
    #[error("the disk `{path}` is a qcow2 image; expected a raw one: `qemu-img convert -O raw` makes it")]
    Qcow2 {
        /// The file.
        path: PathBuf,
    },
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    file: File,
    path: PathBuf,
    read_only: bool,
    sectors: u64,
    serial: [u8; VIRTIO_BLK_ID_BYTES as usize],
    /// The driver sends flushes; until it does, every write is one.
    flushes: bool,
}

impl Block {
    /// Opens and locks the image: for this machine alone, or together with other readers when `read_only`.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, BlockError> {
        let named = || path.to_path_buf();
        let purpose = if read_only { "reading" } else { "reading and writing" };
        let open_failed = |source| BlockError::Open { path: named(), purpose, source };
        // Not blocking, or a pipe would keep us waiting.
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(path).map_err(open_failed)?;
        let about = file.metadata().map_err(open_failed)?;
        if !about.is_file() && !about.file_type().is_block_device() {
            return Err(BlockError::Kind { path: named() });
        }
        lock(&file, read_only).map_err(|errno| match errno {
            Errno::EAGAIN | Errno::EACCES => BlockError::InUse { path: named() },
            other => BlockError::Lock { path: named(), source: other.into() },
        })?;
        let size = file.seek(SeekFrom::End(0)).map_err(open_failed)?;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(BlockError::Size { path: named(), size });
        }
        let mut magic = [0; 4];
        file.rewind().and_then(|()| file.read_exact(&mut magic)).map_err(open_failed)?;
        if &magic == b"QFI\xfb" {
            return Err(BlockError::Qcow2 { path: named() });
        }
        // Stable as long as the file is, and tells the guest nothing about the host.
        let mut serial = [0; VIRTIO_BLK_ID_BYTES as usize];
        for (byte, digit) in serial.iter_mut().zip(format!("{:x}-{:x}", about.dev(), about.ino()).bytes()) {
            *byte = digit;
        }
        Ok(Self { file, path: named(), read_only, sectors: size / SECTOR, serial, flushes: false })
    }

    fn serve(&mut self, ram: &GuestMemoryMmap, chain: Chain) -> Result<u32, DeviceError> {
        let mut request = Request::read(ram, chain)?;
        let (status, written) = match self.carry_out(ram, &mut request) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Refusal::Failed) => (VIRTIO_BLK_S_IOERR, 0),
        };
        ram.write_obj(status as u8, request.status)?;
        Ok(written + 1)
    }

    /// Does it; says how many bytes went to the guest.
    fn carry_out(&mut self, ram: &GuestMemoryMmap, request: &mut Request) -> Result<u32, Refusal> {
        match request.kind {
            VIRTIO_BLK_T_IN => {
                let len = request.to_guest.len();
                self.seek(request.sector, len)?;
                for (address, len) in request.to_guest.iter() {
                    ram.read_exact_volatile_from(address, &mut self.file, len)?;
                }
                Ok(len as u32)
            }
            VIRTIO_BLK_T_OUT => {
                self.writable()?;
                self.seek(request.sector, request.from_guest.len())?;
                for (address, len) in request.from_guest.iter() {
                    ram.write_all_volatile_to(address, &mut self.file, len)?;
                }
                self.settle()?;
                Ok(0)
            }
            VIRTIO_BLK_T_FLUSH => {
                self.file.sync_data()?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let part = request.to_guest.split_front(u64::from(VIRTIO_BLK_ID_BYTES)).ok_or(Refusal::Failed)?;
                let mut serial = &self.serial[..];
                for (address, len) in part.iter() {
                    ram.read_exact_volatile_from(address, &mut serial, len)?;
                }
                Ok(VIRTIO_BLK_ID_BYTES)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                self.writable()?;
                self.empty(ram, request)?;
                self.settle()?;
                Ok(0)
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    fn writable(&self) -> Result<(), Refusal> {
        if self.read_only { Err(Refusal::Failed) } else { Ok(()) }
    }

    /// After a write: a driver without flushes expects it to last.
    fn settle(&self) -> Result<(), Refusal> {
        if !self.flushes {
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Whether `count` sectors from `sector` are on the disk; the offset in bytes.
    fn offset(&self, sector: u64, count: u64) -> Result<u64, Refusal> {
        let end = sector.checked_add(count).ok_or(Refusal::Failed)?;
        if end <= self.sectors { Ok(sector * SECTOR) } else { Err(Refusal::Failed) }
    }

    fn seek(&mut self, sector: u64, bytes: u64) -> Result<(), Refusal> {
        if !bytes.is_multiple_of(SECTOR) {
            return Err(Refusal::Failed);
        }
        let offset = self.offset(sector, bytes / SECTOR)?;
        self.file.seek(SeekFrom::Start(offset))?;
        Ok(())
    }

    /// Discards ranges or makes them zeroes.
    fn empty(&mut self, ram: &GuestMemoryMmap, request: &mut Request) -> Result<(), Refusal> {
        let zeroes = request.kind == VIRTIO_BLK_T_WRITE_ZEROES;
        let total = request.from_guest.len();
        if !total.is_multiple_of(RANGE) || total > u64::from(MOST_RANGES) * RANGE {
            return Err(Refusal::Failed);
        }
        while let Some(range) = request.from_guest.split_front(RANGE).filter(|range| !range.is_empty()) {
            let bytes: [u8; RANGE as usize] = gather(ram, &range)?;
            let sector = u64::from_le_bytes(field(&bytes, 0));
            let count = u32::from_le_bytes(field(&bytes, 8));
            let flags = u32::from_le_bytes(field(&bytes, 12));
            // Only to write zeroes may leave the choice to us (VIRTIO 1.2, 5.2.6.2).
            if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || !zeroes && flags != 0 {
                return Err(Refusal::Unsupported);
            }
            let offset = self.offset(sector, count.into())?;
            if count > MOST_RANGE_SECTORS {
                return Err(Refusal::Failed);
            }
            if count > 0 {
                self.empty_range(offset, u64::from(count) * SECTOR, zeroes, flags != 0)?;
            }
        }
        Ok(())
    }

    fn empty_range(&mut self, offset: u64, len: u64, zeroes: bool, unmap: bool) -> Result<(), Refusal> {
        // Below the end of a file that exists: both fit.
        let (at, count) = (offset as libc::off_t, len as libc::off_t);
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let how = if !zeroes || unmap { hole } else { zero };
        match fallocate(&self.file, how, at, count) {
            Ok(()) => Ok(()),
            // The file system cannot: to discard is a wish, zeroes are not.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) if !zeroes => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                self.file.seek(SeekFrom::Start(offset))?;
                let copied = io::copy(&mut io::repeat(0).take(len), &mut self.file)?;
                if copied == len { Ok(()) } else { Err(Refusal::Failed) }
            }
            Err(_) => Err(Refusal::Failed),
        }
    }
}

/// A lock on the whole file that belongs to the opened file, so that it ends with it.
fn lock(file: &File, shared: bool) -> Result<(), Errno> {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map(drop)
}

/// What the driver asks for.
struct Request {
    kind: u32,
    sector: u64,
    from_guest: Buffers,
    to_guest: Buffers,
    /// Where the answer goes: the last byte that the device may write.
    status: GuestAddress,
}

impl Request {
    fn read(ram: &GuestMemoryMmap, chain: Chain) -> Result<Self, DeviceError> {
        let (mut from_guest, mut writable) = Buffers::of(chain)?;
        let header = from_guest.split_front(HEADER).ok_or(DeviceError::Driver("a disk request without a header"))?;
        let header: [u8; HEADER as usize] = gather(ram, &header)?;
        let no_status = DeviceError::Driver("a disk request without room for its status");
        let Some(data) = writable.len().checked_sub(1) else { return Err(no_status) };
        let to_guest = writable.split_front(data).unwrap_or_default();
        let (status, _) = writable.iter().next().ok_or(no_status)?;
        let (kind, sector) = (u32::from_le_bytes(field(&header, 0)), u64::from_le_bytes(field(&header, 8)));
        Ok(Self { kind, sector, from_guest, to_guest, status })
    }
}

/// The bytes in `buffers`, which are `N`.
fn gather<const N: usize>(ram: &GuestMemoryMmap, buffers: &Buffers) -> Result<[u8; N], vm_memory::GuestMemoryError> {
    let mut bytes = [0; N];
    let mut rest = &mut bytes[..];
    for (address, len) in buffers.iter() {
        ram.write_all_volatile_to(address, &mut rest, len)?;
    }
    Ok(bytes)
}

/// The `N` bytes at `at`, which is within `bytes`.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes[at + index])
}

/// Why a request is not done.
enum Refusal {
    Unsupported,
    Failed,
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Failed
    }
}

impl From<vm_memory::GuestMemoryError> for Refusal {
    fn from(_: vm_memory::GuestMemoryError) -> Self {
        Self::Failed
    }
}

impl Device for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> String {
        format!("the disk `{}`", self.path.display())
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE;
        always
            | match self.read_only {
                true => 1 << VIRTIO_BLK_F_RO,
                false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
            }
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        // struct virtio_blk_config (VIRTIO 1.2, 5.2.4)
        let mut config = Vec::new();
        config.extend(self.sectors.to_le_bytes()); //                0 capacity, in sectors
        config.extend(0u32.to_le_bytes()); //                        8 size_max, not offered
        config.extend(u32::from(QUEUE_SIZE - 2).to_le_bytes()); //  12 seg_max: a request less header and status
        config.extend([0; 4]); //                                   16 geometry, not offered
        config.extend((SECTOR as u32).to_le_bytes()); //            20 blk_size, in bytes
        config.extend([0; 12]); //                                  24 topology, writeback, queues: not offered
        config.extend(MOST_RANGE_SECTORS.to_le_bytes()); //         36 max_discard_sectors
        config.extend(MOST_RANGES.to_le_bytes()); //                40 max_discard_seg
        config.extend(8u32.to_le_bytes()); //                       44 discard_sector_alignment: a page of the host
        config.extend(MOST_RANGE_SECTORS.to_le_bytes()); //         48 max_write_zeroes_sectors
        config.extend(MOST_RANGES.to_le_bytes()); //                52 max_write_zeroes_seg
        config.extend([1, 0, 0, 0]); //                             56 write_zeroes_may_unmap
        config
    }

    fn start(&mut self, features: u64, _: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        self.flushes = features & 1 << VIRTIO_BLK_F_FLUSH != 0;
        Ok(())
    }

    fn stop(&mut self, _: &mut Watch<'_, '_>) {}

    fn queue(&mut self, index: usize, rings: &mut [Ring], _: &mut Watch<'_, '_>) -> Result<(), DeviceError> {
        rings[index].serve(|ram, chain| self.serve(ram, chain))
    }
}
