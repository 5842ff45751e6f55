//! Whether the inputs belong to each other.
//!
//! Comes in: texts of System.map, Makefile, changelog, configuration and compiler, and the image's symbols and banner.
//! Decided: each pair agrees or not; every check is a rule of its own. Goes out: [`Reason`]s, none when all agree.
//! These checks find honest mistakes early and name them; the proof of the original code is what a bundle rests on.

use crate::report::Reason;
use prelink::symbol_db::{AddressKind, SymbolDb, SymbolKind};
use prelink::units::Unit;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Options that decide whether a symbol is in the image: any of the options, the symbol, and where that is said.
const TRACES: &[(&[&str], &str)] = &[
    (&["CONFIG_FUNCTION_TRACER"], "__fentry__"),   // arch/x86/kernel/ftrace_64.S
    (&["CONFIG_LIVEPATCH"], "klp_enable_patch"),   // kernel/livepatch/core.c
    (&["CONFIG_MODULES"], "__request_module"),     // kernel/kmod.c, kernel/module/kmod.c
    (&["CONFIG_SMP"], "native_smp_prepare_cpus"),  // arch/x86/kernel/smpboot.c
    (&["CONFIG_BPF_SYSCALL"], "bpf_map_get"),      // kernel/bpf/syscall.c
    (&["CONFIG_NUMA"], "node_data"),               // arch/x86/mm/numa.c
    (&["CONFIG_XEN"], "xen_domain_type"),          // arch/x86/xen/enlighten.c
    (&["CONFIG_KVM_GUEST"], "kvm_para_available"), // arch/x86/kernel/kvm.c
    (&["CONFIG_CGROUPS"], "cgroup_attach_task"),   // kernel/cgroup/cgroup.c
    (&["CONFIG_MEMCG"], "mem_cgroup_from_task"),   // mm/memcontrol.c
    (&["CONFIG_KPROBES"], "register_kprobe"),      // kernel/kprobes.c
    (&["CONFIG_JUMP_LABEL"], "static_key_enable"), // kernel/jump_label.c
    (&["CONFIG_STACKPROTECTOR"], "__stack_chk_fail"), // kernel/panic.c
    (&["CONFIG_AUDIT"], "audit_log_start"),        // kernel/audit.c
    (&["CONFIG_NETFILTER"], "nf_hook_slow"),       // net/netfilter/core.c
    (&["CONFIG_PERF_EVENTS"], "perf_event_create_kernel_counter"), // kernel/events/core.c
    (&["CONFIG_PREEMPT_DYNAMIC"], "sched_dynamic_update"), // kernel/sched/core.c
    (&["CONFIG_DEBUG_FS"], "debugfs_create_file"), // fs/debugfs/inode.c
    (&["CONFIG_RETPOLINE", "CONFIG_MITIGATION_RETPOLINE"], "__x86_indirect_thunk_rax"), // arch/x86/lib/retpoline.S
    (&["CONFIG_RETHUNK", "CONFIG_MITIGATION_RETHUNK"], "__x86_return_thunk"), // arch/x86/lib/retpoline.S
];

/// Options of kernels whose units cannot be compiled and compared alone.
const REFUSED: &[(&str, &str)] = &[
    (
        "CONFIG_LTO_CLANG",
        "with link-time optimisation the code of a unit depends on all others, and its object has none",
    ),
    ("CONFIG_CFI_CLANG", "new code would need type hashes that its callers check, which this version does not place"),
];

/// A kernel configuration.
pub struct Config<'a>(HashMap<&'a str, &'a str>);

impl<'a> Config<'a> {
    /// Reads `CONFIG_X=value` lines; an option that is not set is absent.
    pub fn parse(text: &'a str) -> Self {
        let options = text.lines().filter(|line| line.starts_with("CONFIG_")).filter_map(|line| line.split_once('='));
        Self(options.map(|(name, value)| (name, value.trim_matches('"'))).collect())
    }

    /// Value of an option, without quotes.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).copied()
    }

    /// All options.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a str)> + '_ {
        self.0.iter().map(|(name, value)| (*name, *value))
    }

    /// What the compiler said of itself when the kernel was configured.
    pub fn compiler(&self) -> Option<&'a str> {
        self.get("CONFIG_CC_VERSION_TEXT")
    }
}

/// The upstream version of a kernel, and how exactly it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelVersion {
    /// `6.1.190`, or `6.1` when the banner does not say more.
    pub version: String,
    /// The distribution's (`6.1.190-1`), if the banner has it.
    pub debian: Option<String>,
}

impl KernelVersion {
    /// From the banner. Debian's release (`6.1.0-54`) has an ABI number in place of the third part, but its banner
    /// ends with the package version (`Debian 6.1.190-1`).
    pub fn of(banner: &str, release: &str) -> Self {
        let mut words = banner.split_whitespace();
        while let Some(word) = words.next() {
            if word == "Debian"
                && let Some(package) = words.clone().next()
                && let Some((version, _)) = package.rsplit_once('-')
                && version.split('.').count() >= 2
                && version.starts_with(|first: char| first.is_ascii_digit())
                && !package.contains(')')
            {
                return Self { version: plain_version(version), debian: Some(package.to_owned()) };
            }
        }
        let version = plain_version(release);
        // Distributions freeze the third part at 0 and count an ABI behind it.
        let frozen = version.ends_with(".0") && release[version.len()..].starts_with('-');
        Self { version: if frozen { version.trim_end_matches(".0").to_owned() } else { version }, debian: None }
    }

    /// Whether a full version (`6.1.190`) can be this kernel's.
    pub fn agrees(&self, full: &str) -> bool {
        let exact = self.version.split('.').count() >= 3;
        full == self.version || (!exact && full.strip_prefix(&self.version).is_some_and(|rest| rest.starts_with('.')))
    }
}

/// The leading digits and points (`6.1.190~rc1` → `6.1.190`).
fn plain_version(text: &str) -> String {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text[..end].trim_end_matches('.').to_owned()
}

/// `VERSION.PATCHLEVEL.SUBLEVEL` of the top Makefile.
pub fn makefile_version(makefile: &str) -> Option<String> {
    let value = |name: &str| {
        makefile.lines().take(20).find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    Some(format!("{}.{}.{}", value("VERSION")?, value("PATCHLEVEL")?, value("SUBLEVEL")?))
}

/// System.map against the image: the same names at the same addresses.
pub fn check_system_map(map: &[u8], path: &str, given: bool, symbols: &SymbolDb) -> Vec<Reason> {
    let text = String::from_utf8_lossy(map);
    let mut entries: Vec<(u64, &str)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split_ascii_whitespace();
        let entry = words.next().and_then(|word| u64::from_str_radix(word, 16).ok()).zip(words.nth(1));
        match entry {
            Some(entry) => entries.push(entry),
            None => {
                return vec![
                    Reason::new("wrong-system-map", format!("expected `ADDRESS TYPE NAME`, found `{}`", line.trim()))
                        .at(path, Some(index + 1))
                        .help("give the System.map of this very kernel build with --system-map"),
                ];
            }
        }
    }
    if entries.len() < 100 {
        let message = format!("{} symbols only: this is a stub, not the kernel's System.map", entries.len());
        let where_from =
            if given { "give the real one" } else { "install the kernel's debug package, or give the real one" };
        return vec![Reason::new("system-map-stub", message).at(path, None).help(where_from)];
    }
    let known: HashSet<(u64, &str)> = symbols.iter().map(|symbol| (symbol.address, symbol.name.as_str())).collect();
    let wrong: Vec<&(u64, &str)> = entries.iter().filter(|entry| !known.contains(*entry)).collect();
    let help = "give the System.map of this very kernel build with --system-map";
    if let Some((address, name)) = wrong.first() {
        let found = match symbols.address_of(name) {
            Some(other) => format!("vmlinux has it at {other:#x}"),
            None => "vmlinux has none of that name".to_owned(),
        };
        let message = format!(
            "{} of {} symbols disagree with vmlinux; the first is {name}: System.map has it at {address:#x}, {found}",
            wrong.len(),
            entries.len()
        );
        return vec![Reason::new("wrong-system-map", message).at(path, None).help(help)];
    }
    let mapped: HashSet<&str> = entries.iter().map(|(_, name)| *name).collect();
    let expected = |symbol: &&prelink::symbol_db::KernelSymbol| {
        symbol.global
            && symbol.address_kind == AddressKind::Image
            && symbol.kind != SymbolKind::Label
            // scripts/mksysmap leaves out several kinds of generated names, all of which start like this.
            && !symbol.name.starts_with("__")
            && !symbol.name.starts_with('.')
    };
    let missing: Vec<&str> = symbols
        .iter()
        .filter(expected)
        .map(|symbol| symbol.name.as_str())
        .filter(|name| !mapped.contains(name))
        .collect();
    match missing.first() {
        Some(first) => {
            let message = format!(
                "{} symbols of vmlinux are missing, the first is {first}: the file is cut short",
                missing.len()
            );
            vec![Reason::new("wrong-system-map", message).at(path, None).help(help)]
        }
        None => Vec::new(),
    }
}

/// The source tree's version against the kernel's.
pub fn check_source(makefile: &str, changelog: Option<&str>, path: &str, kernel: &KernelVersion) -> Vec<Reason> {
    let help = "give the source that this kernel was built from with --source";
    let mut reasons = Vec::new();
    match makefile_version(makefile) {
        Some(version) if kernel.agrees(&version) => {}
        Some(version) => reasons.push(
            Reason::new("wrong-source", format!("the kernel is {}, the source is {version}", kernel.version))
                .at(path, None)
                .help(help),
        ),
        None => reasons.push(Reason::new("wrong-source", "its Makefile names no version").at(path, None).help(help)),
    }
    let package = changelog.and_then(|text| Some(text.lines().next()?.split_once('(')?.1.split_once(')')?.0));
    if let (Some(package), Some(debian)) = (package, &kernel.debian)
        && package != debian
    {
        let message = format!("the kernel is of package {debian}, the source of {package}");
        reasons.push(Reason::new("wrong-source", message).at(path, None).help(help));
    }
    reasons
}

/// The configuration against the kernel's version, compiler and symbols.
pub fn check_config(text: &str, path: &str, kernel: &KernelVersion, banner: &str, symbols: &SymbolDb) -> Vec<Reason> {
    let wrong = |message: String| {
        let help = "give the configuration that this kernel was built with (/boot/config-RELEASE) with --config";
        Reason::new("wrong-config", message).at(path, None).help(help)
    };
    let config = Config::parse(text);
    let mut reasons = Vec::new();
    let headline = text.lines().take(8).find_map(|line| line.strip_prefix("# Linux/")?.split_ascii_whitespace().nth(1));
    if let Some(version) = headline
        && !kernel.agrees(&plain_version(version))
    {
        reasons.push(wrong(format!("the kernel is {}, the configuration is of {version}", kernel.version)));
    }
    if config.get("CONFIG_X86_64") != Some("y") {
        reasons.push(wrong("CONFIG_X86_64 is not set; only x86-64 kernels can be updated".to_owned()));
        return reasons;
    }
    for (option, why) in REFUSED {
        if config.get(option) == Some("y") {
            let message = format!("{option} is set: {why}");
            let help = "build the kernel without it; the rest of its configuration can stay";
            reasons.push(Reason::new("build-unsupported", message).at(path, None).help(help));
        }
    }
    match config.compiler() {
        Some(compiler) if banner.contains(compiler) => {}
        Some(compiler) => {
            reasons.push(wrong(format!("it was made for compiler `{compiler}`, the kernel's banner says `{banner}`")));
        }
        None => reasons.push(wrong("it names no compiler (CONFIG_CC_VERSION_TEXT)".to_owned())),
    }
    for (options, symbol) in TRACES {
        let set = options.iter().any(|option| config.get(option) == Some("y"));
        // Where the option is not set, headers have stubs of the same name, which are local.
        let there = symbols.lookup(symbol).any(|symbol| symbol.global);
        if set != there {
            let option = options[0];
            let (says, has) = if set { ("is set", "has no") } else { ("is not set", "has") };
            reasons.push(wrong(format!("{option} {says}, but vmlinux {has} {symbol}")));
        }
    }
    reasons
}

/// What the image's units say of the compiler that made them, against what the compiler found says of itself.
pub fn check_producers<'u, 'd: 'u>(units: impl Iterator<Item = &'u Unit<'d>>, version: &str) -> Vec<Reason> {
    let mut others: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for unit in units.filter(|unit| !made_by(&unit.producer, version)) {
        others.entry(short(&unit.producer)).or_insert((0, &unit.name)).0 += 1;
    }
    let reason = |(producer, (count, first)): (&str, (usize, &str))| {
        let message = format!(
            "{count} units of vmlinux were compiled by `{producer}`, the first is {first}; found is `{version}`"
        );
        Reason::new("wrong-compiler", message)
            .help("install the compiler that built the kernel (its package version counts too), or name it with --cc")
    };
    others.into_iter().map(reason).collect()
}

/// Whether `DW_AT_producer` (`GNU C11 12.2.0 -mno-sse …`, `Debian clang version 14.0.6`) is of the compiler that says `version`
/// of itself (`gcc (Debian 12.2.0-14) 12.2.0`, `Debian clang version 14.0.6`).
fn made_by(producer: &str, version: &str) -> bool {
    match producer.strip_prefix("GNU ") {
        Some(gnu) => {
            let number = gnu.split(' ').nth(1).unwrap_or_default();
            !version.contains("clang") && version.split([' ', ')']).any(|word| word == number)
        }
        None => producer == version,
    }
}

/// Whether two `DW_AT_producer` are of the same compiler and language, whatever their options.
pub fn same_producer(a: &str, b: &str) -> bool {
    short(a) == short(b)
}

/// A producer without its options.
fn short(producer: &str) -> &str {
    producer.find(" -").map_or(producer, |end| &producer[..end])
}

/// What two compilers say of themselves, apart from the name they were called by.
pub fn same_compiler(recorded: &str, found: &str) -> bool {
    let rest = |text: &str| text.trim().split_once(' ').map(|(_, rest)| rest.trim().to_owned());
    rest(recorded).is_some() && rest(recorded) == rest(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prelink::symbol_db::KernelSymbol;

    const DEBIAN: &str = "Linux version 6.1.0-9-amd64 (d@x) (gcc-12 (Debian 12.2.0-14) 12.2.0, GNU ld) #1 SMP Debian 6.1.7-2 (2025-01-01)";

    #[test]
    fn versions_of_banners() {
        let cases = [
            (DEBIAN, "6.1.0-9-amd64", "6.1.7", Some("6.1.7-2")),
            ("Linux version 5.15.0-91-generic (b@x) (gcc) #101-Ubuntu SMP", "5.15.0-91-generic", "5.15", None),
            ("Linux version 6.9.3 (me@x) (gcc) #1 SMP", "6.9.3", "6.9.3", None),
            ("Linux version 6.9.0 (me@x) (gcc) #1 SMP", "6.9.0", "6.9.0", None),
        ];
        for (banner, release, version, debian) in cases {
            let found = KernelVersion::of(banner, release);
            assert_eq!((found.version.as_str(), found.debian.as_deref()), (version, debian), "{banner}");
        }
        let frozen = KernelVersion::of("Linux version 5.15.0-91-generic", "5.15.0-91-generic");
        assert!(frozen.agrees("5.15.131") && !frozen.agrees("5.1.5") && !frozen.agrees("5.150.1"));
    }

    fn symbols(extra: &[&str]) -> SymbolDb {
        let names = (0..200).map(|index| format!("f{index}")).chain(extra.iter().map(|name| (*name).to_owned()));
        let all = (0x1000u64..).step_by(16).zip(names).map(|(address, name)| KernelSymbol {
            name,
            address,
            size: 16,
            kind: SymbolKind::Function,
            global: true,
            address_kind: AddressKind::Image,
            file: None,
        });
        SymbolDb::new(all.collect())
    }

    fn map(symbols: &SymbolDb) -> String {
        symbols.iter().map(|symbol| format!("{:016x} T {}\n", symbol.address, symbol.name)).collect()
    }

    #[test]
    fn system_maps() {
        let symbols = symbols(&[]);
        let good = map(&symbols);
        assert_eq!(check_system_map(good.as_bytes(), "m", true, &symbols), []);
        let cases = [
            (good.replacen("0000000000001010", "0000000000001018", 1), "wrong-system-map", "f1:"),
            (good.replace(" f7\n", " other\n"), "wrong-system-map", "none of that name"),
            (good.lines().take(150).map(|line| format!("{line}\n")).collect(), "wrong-system-map", "f150"),
            (good.lines().take(50).map(|line| format!("{line}\n")).collect(), "system-map-stub", "50 symbols"),
            ("hello\n".to_owned(), "wrong-system-map", "`hello`"),
        ];
        for (text, rule, word) in cases {
            let reasons = check_system_map(text.as_bytes(), "m", true, &symbols);
            assert_eq!(reasons.len(), 1, "{rule} {word}");
            assert_eq!(reasons[0].rule, rule);
            assert!(reasons[0].message.contains(word), "{}", reasons[0].message);
        }
    }

    #[test]
    fn sources() {
        let kernel = KernelVersion::of(DEBIAN, "6.1.0-9-amd64");
        let makefile = "# x\nVERSION = 6\nPATCHLEVEL = 1\nSUBLEVEL = 7\nEXTRAVERSION =\n";
        assert_eq!(check_source(makefile, Some("linux (6.1.7-2) stable; urgency=high\n"), "s", &kernel), []);
        assert_eq!(check_source(makefile, None, "s", &kernel), []);
        for (makefile, changelog, word) in [
            (makefile.replace("= 7", "= 8"), None, "the source is 6.1.8"),
            (makefile.to_owned(), Some("linux (6.1.7-1) stable\n"), "of 6.1.7-1"),
            ("all:\n".to_owned(), None, "no version"),
        ] {
            let reasons = check_source(&makefile, changelog, "s", &kernel);
            assert_eq!(reasons.len(), 1, "{word}");
            assert!(reasons[0].rule == "wrong-source" && reasons[0].message.contains(word), "{:?}", reasons[0]);
        }
    }

    #[test]
    fn configurations() {
        let kernel = KernelVersion::of(DEBIAN, "6.1.0-9-amd64");
        let symbols = symbols(&["klp_enable_patch"]);
        let good = "#\n# Linux/x86 6.1.7 Kernel Configuration\n#\nCONFIG_CC_VERSION_TEXT=\"gcc-12 (Debian 12.2.0-14) 12.2.0\"\nCONFIG_X86_64=y\nCONFIG_LIVEPATCH=y\n";
        assert_eq!(check_config(good, "c", &kernel, DEBIAN, &symbols), []);
        for (from, to, word) in [
            ("6.1.7 K", "6.1.8 K", "configuration is of 6.1.8"),
            ("12.2.0-14", "12.2.0-15", "12.2.0-15"),
            ("CONFIG_LIVEPATCH=y\n", "# CONFIG_LIVEPATCH is not set\n", "has klp_enable_patch"),
            ("CONFIG_LIVEPATCH=y\n", "CONFIG_LIVEPATCH=y\nCONFIG_SMP=y\n", "has no native_smp_prepare_cpus"),
            ("CONFIG_X86_64=y", "CONFIG_ARM64=y", "CONFIG_X86_64"),
            ("CONFIG_LIVEPATCH=y\n", "CONFIG_LIVEPATCH=y\nCONFIG_LTO_CLANG=y\n", "CONFIG_LTO_CLANG is set"),
        ] {
            let reasons = check_config(&good.replace(from, to), "c", &kernel, DEBIAN, &symbols);
            assert_eq!(reasons.len(), 1, "{word}: {reasons:?}");
            let rule = if word.contains("LTO") { "build-unsupported" } else { "wrong-config" };
            assert!(reasons[0].rule == rule && reasons[0].message.contains(word), "{:?}", reasons[0]);
        }
    }

    #[test]
    fn producers_are_of_the_compiler_or_not() {
        let gcc = "gcc-12 (Debian 12.2.0-14) 12.2.0";
        assert!(made_by("GNU C11 12.2.0 -mno-sse -O2", gcc));
        assert!(!made_by("GNU C11 12.3.0 -mno-sse", gcc) && !made_by("Debian clang version 14.0.6", gcc));
        let clang = "Debian clang version 14.0.6";
        assert!(
            made_by(clang, clang) && !made_by("GNU C11 14.0.6 -O2", clang) && !made_by("clang version 14.0.6", clang)
        );
        assert_eq!(short("GNU C11 12.2.0 -mno-sse -O2"), "GNU C11 12.2.0");
    }

    #[test]
    fn compilers_may_have_another_name() {
        let recorded = "gcc-12 (Debian 12.2.0-14) 12.2.0";
        assert!(same_compiler(recorded, "gcc (Debian 12.2.0-14) 12.2.0\n"));
        assert!(!same_compiler(recorded, "gcc-12 (Debian 12.2.0-13) 12.2.0"));
        assert!(!same_compiler(recorded, "clang"));
        assert!(!same_compiler("", ""));
    }
}
