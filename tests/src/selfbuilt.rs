//! Kernels that people build themselves: small ones of different configuration, made once from the fetched source.
//!
//! Comes in: the older kernel of the cache. Decided: the recipes: what each is configured with, by which compiler it is made,
//! in its source tree or apart from it. Goes out: [`SelfBuilt`], whose build folder has everything that a build leaves.
//!
//! # Consistency on error
//! A build that was cut leaves a folder without its marker, which the next set-up removes.

use crate::kernels::{Kernel, MARKER};
use crate::setup::SetupError;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a kernel is made.
#[derive(Debug)]
pub struct Recipe {
    /// Its name; also the end of its release.
    pub name: &'static str,
    /// What it is there to show, for people.
    pub about: &'static str,
    /// Built in a copy of its source tree, not in a folder of its own.
    pub in_tree: bool,
    /// Words for make.
    pub make: &'static [&'static str],
    /// Options beyond [`COMMON`].
    pub config: &'static str,
}

/// Options of all of them: enough for a shell on a serial console, with debug information.
pub const COMMON: &str = "CONFIG_64BIT=y
CONFIG_SMP=y
CONFIG_NR_CPUS=8
CONFIG_EXPERT=y
CONFIG_DEBUG_KERNEL=y
CONFIG_DEBUG_INFO_DWARF5=y
CONFIG_CC_OPTIMIZE_FOR_PERFORMANCE=y
CONFIG_PRINTK=y
CONFIG_BUG=y
CONFIG_TTY=y
CONFIG_SERIAL_8250=y
CONFIG_SERIAL_8250_CONSOLE=y
CONFIG_BLK_DEV_INITRD=y
CONFIG_BINFMT_ELF=y
CONFIG_BINFMT_SCRIPT=y
CONFIG_PROC_FS=y
CONFIG_PROC_SYSCTL=y
CONFIG_SYSFS=y
CONFIG_DEVTMPFS=y
CONFIG_SPARSEMEM_VMEMMAP=y
CONFIG_SHMEM=y
CONFIG_TMPFS=y
CONFIG_FUTEX=y
CONFIG_EPOLL=y
CONFIG_POSIX_TIMERS=y
CONFIG_MULTIUSER=y
CONFIG_X86_MPPARSE=y
CONFIG_HIGH_RES_TIMERS=y
CONFIG_NO_HZ_IDLE=y
CONFIG_CPU_SUP_INTEL=y
CONFIG_CPU_SUP_AMD=y
CONFIG_SPECULATION_MITIGATIONS=y
CONFIG_CPU_MITIGATIONS=y
CONFIG_RETPOLINE=y
CONFIG_KERNEL_GZIP=y
";

/// The kernels that are made.
pub const RECIPES: [Recipe; 3] = [
    Recipe {
        name: "plain",
        about: "gcc, in its source tree: frame pointers, at a fixed address, no modules, ftrace, kallsyms or jump labels",
        in_tree: true,
        make: &[],
        config: "CONFIG_UNWINDER_FRAME_POINTER=y
# CONFIG_RELOCATABLE is not set
# CONFIG_KALLSYMS is not set
# CONFIG_MODULES is not set
",
    },
    Recipe {
        name: "traced",
        about: "gcc, in a folder of its own: ORC, IBT, modules, ftrace, livepatch, return thunks, paravirt, KASLR",
        in_tree: false,
        make: &[],
        config: "CONFIG_UNWINDER_ORC=y
CONFIG_RELOCATABLE=y
CONFIG_RANDOMIZE_BASE=y
CONFIG_RANDOMIZE_MEMORY=y
CONFIG_KALLSYMS=y
CONFIG_KALLSYMS_ALL=y
CONFIG_MODULES=y
CONFIG_MODULE_UNLOAD=y
CONFIG_FTRACE=y
CONFIG_FUNCTION_TRACER=y
CONFIG_DYNAMIC_FTRACE=y
CONFIG_KPROBES=y
CONFIG_LIVEPATCH=y
CONFIG_JUMP_LABEL=y
CONFIG_X86_KERNEL_IBT=y
CONFIG_RETHUNK=y
CONFIG_CPU_UNRET_ENTRY=y
CONFIG_HYPERVISOR_GUEST=y
CONFIG_PARAVIRT=y
CONFIG_KVM_GUEST=y
CONFIG_STACKPROTECTOR=y
CONFIG_STACKPROTECTOR_STRONG=y
",
    },
    Recipe {
        name: "clang",
        about: "clang and lld, in a folder of its own: ORC, retpolines, modules, jump labels, KASLR, no ftrace",
        in_tree: false,
        make: &["CC=clang", "LD=ld.lld"],
        config: "CONFIG_UNWINDER_ORC=y
CONFIG_RELOCATABLE=y
CONFIG_RANDOMIZE_BASE=y
CONFIG_KALLSYMS=y
CONFIG_MODULES=y
CONFIG_JUMP_LABEL=y
",
    },
];

/// Programs that they need beyond those of every kernel's build.
pub const PACKAGES: &[&str] = &["clang", "lld"];

/// A kernel that was built here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelfBuilt {
    /// Name of its recipe.
    pub name: &'static str,
    /// The folder it was built in.
    pub folder: PathBuf,
    /// Its source tree.
    pub source: PathBuf,
}

impl SelfBuilt {
    /// The bootable image.
    pub fn image(&self) -> PathBuf {
        self.folder.join("arch/x86/boot/bzImage")
    }
}

impl Recipe {
    /// Where it is kept, by all that it depends on.
    pub fn place(&self, cache: &Path, kernel: &Kernel) -> PathBuf {
        let mut hash = Sha256::new();
        for part in [COMMON, self.config, &self.make.join(" "), &kernel.version] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let key: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        cache.join("selfbuilt").join(format!("{}-{}-{key}", self.name, kernel.version))
    }

    /// The kernel, if it was built to the end.
    pub fn built(&self, cache: &Path, kernel: &Kernel) -> Option<SelfBuilt> {
        let place = self.place(cache, kernel);
        place.join(MARKER).exists().then(|| self.at(&place, kernel))
    }

    fn at(&self, place: &Path, kernel: &Kernel) -> SelfBuilt {
        let folder = place.join("build");
        let source = if self.in_tree { folder.clone() } else { kernel.source() };
        SelfBuilt { name: self.name, folder, source }
    }

    /// Builds the kernel unless it is there.
    ///
    /// # Errors
    /// [`SetupError`] with the end of make's output.
    pub fn build(&self, cache: &Path, kernel: &Kernel, say: &dyn Fn(&str)) -> Result<SelfBuilt, SetupError> {
        if let Some(built) = self.built(cache, kernel) {
            return Ok(built);
        }
        let place = self.place(cache, kernel);
        if place.exists() {
            fs::remove_dir_all(&place).map_err(SetupError::io(&place))?;
        }
        fs::create_dir_all(&place).map_err(SetupError::io(&place))?;
        let built = self.at(&place, kernel);
        say(&format!("building kernel {} ({}); this takes some minutes, once", self.name, self.about));
        if self.in_tree {
            // Hard links: the build replaces files and never writes into one.
            let (from, to) = (kernel.source().display().to_string(), built.folder.display().to_string());
            crate::setup::apt::output(&place, &["cp", "--archive", "--link", &from, &to])?;
        } else {
            fs::create_dir(&built.folder).map_err(SetupError::io(&built.folder))?;
        }
        let fragment = place.join("fragment");
        let text = format!("{COMMON}{}CONFIG_LOCALVERSION=\"-{}\"\n", self.config, self.name);
        fs::write(&fragment, &text).map_err(SetupError::io(&fragment))?;
        self.make(&place, &built, &[&format!("KCONFIG_ALLCONFIG={}", fragment.display()), "allnoconfig"])?;
        self.check_config(&built, &text)?;
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        self.make(&place, &built, &[&format!("-j{jobs}"), "vmlinux", "bzImage"])?;
        let marker = place.join(MARKER);
        fs::write(&marker, "").map_err(SetupError::io(&marker))?;
        Ok(built)
    }

    /// An option that the kernel's configuration does not take would make the kernel another one than it is said to be.
    fn check_config(&self, built: &SelfBuilt, wanted: &str) -> Result<(), SetupError> {
        let path = built.folder.join(".config");
        let config = fs::read_to_string(&path).map_err(SetupError::io(&path))?;
        let lines: std::collections::HashSet<&str> = config.lines().collect();
        // An option that depends on one that is not set is not mentioned at all.
        let unset = |line: &str| {
            let name = line.strip_prefix("# ").and_then(|rest| rest.strip_suffix(" is not set"));
            name.is_some_and(|name| !config.contains(&format!("{name}=")))
        };
        // Its name differs between versions.
        let lost =
            wanted.lines().filter(|line| !lines.contains(line) && !unset(line) && !line.contains("_MITIGATIONS="));
        let lost: Vec<&str> = lost.collect();
        if lost.is_empty() {
            return Ok(());
        }
        Err(SetupError::Contents { package: format!("configuration {}", self.name), expected: lost.join(", ") })
    }

    fn make(&self, place: &Path, built: &SelfBuilt, goals: &[&str]) -> Result<(), SetupError> {
        let log_path = place.join("log");
        let log = File::options().create(true).append(true).open(&log_path).map_err(SetupError::io(&log_path))?;
        let errors = log.try_clone().map_err(SetupError::io(&log_path))?;
        let mut command = Command::new("make");
        command.arg("-C").arg(&built.source);
        if !self.in_tree {
            command.arg(format!("O={}", built.folder.display()));
        }
        command.args(self.make).args(goals);
        for name in
            ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARCH", "CROSS_COMPILE", "KBUILD_OUTPUT", "KCFLAGS", "LLVM", "CC", "V"]
        {
            command.env_remove(name);
        }
        command.env("LC_ALL", "C").env("KBUILD_BUILD_USER", "lucos").env("KBUILD_BUILD_HOST", "lucos");
        let line = format!("{command:?}").replace('"', "");
        let status = command.stdin(Stdio::null()).stdout(log).stderr(errors).status();
        let status = status.map_err(SetupError::io(Path::new("make")))?;
        if status.success() {
            return Ok(());
        }
        let text = fs::read(&log_path).map_err(SetupError::io(&log_path))?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let output = lines[lines.len().saturating_sub(15)..].join("\n");
        Err(SetupError::Command { command: line, status: status.to_string(), output })
    }
}

/// Builds all of them.
///
/// # Errors
/// [`SetupError`] of the first that cannot be built.
pub fn prepare(kernel: &Kernel, say: &dyn Fn(&str)) -> Result<Vec<SelfBuilt>, SetupError> {
    let cache = crate::kernels::cache_dir()?;
    let _lock = crate::setup::fetch::lock(&cache, say)?;
    let mut apt = crate::setup::apt::Apt::new(&cache);
    crate::setup::packages::install_missing(PACKAGES, &mut apt, say)?;
    RECIPES.iter().map(|recipe| recipe.build(&cache, kernel, say)).collect()
}
