//! Proves, compares and links the units of small kernel images, one per folder of `testdata/link`.
//!
//! `X.old.c` and `X.new.c` are a unit before and after; the other C files are the rest of the kernel, in folders of their
//! own if need be. The image is built as a kernel's is: no sections per function, `--emit-relocs`, a linker script.
//! Where `X.image.c` exists, the image was built from that instead of `X.old.c`. `expect.txt` holds what was proved, and
//! where each reference of the payload leads, or the refusals. The folder's name says which of these to expect:
//! `linked`, or `refused-RULE`. `LUCOS_BLESS=1` rewrites the reports.

use diff_analyzer::dwarf_layout::{self, Layouts};
use diff_analyzer::layout_diff;
use diff_analyzer::object::Object;
use diff_analyzer::object_diff::{ObjectDiff, compare_resigned};
use diff_analyzer::pieces::Pieces;
use lpk_format::{BootSiteKind, Payload, Place, RelocKind, SectionKind, TableKind};
use prelink::dwarf::DebugSections;
use prelink::link::{Linked, Unit, link};
use prelink::prove::{Proof, prove};
use prelink::refusal::Refusal;
use prelink::sites::BootTables;
use prelink::symbol_db::{AddressKind, KernelSymbol};
use prelink::units::UnitIndex;
use prelink::vmlinux::KernelImage;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An object and its types.
type Compiled = (Object, Layouts);
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// The options of a kernel build that decide what an object looks like; each function begins with a call for tracing.
const OPTIONS: &str = "-std=gnu11 -O2 -g -pg -mfentry -mrecord-mcount -mcmodel=kernel -fno-pic -fno-pie -fno-common \
    -fno-asynchronous-unwind-tables -fcf-protection=none -mno-sse -mno-mmx -mno-80387 -mno-red-zone -fno-stack-protector \
    -fno-strict-aliasing -fno-delete-null-pointer-checks -fno-jump-tables -fno-optimize-sibling-calls -w";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/link")
}

fn run(command: &mut Command) -> Outcome {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// Compiles `source` under the name that it has in the kernel's tree.
fn compile(tree: &Path, name: &str, source: &Path, object: &Path, options: &[&str]) -> Outcome {
    let path = tree.join(name);
    std::fs::create_dir_all(path.parent().ok_or("a source has a folder")?)?;
    std::fs::copy(source, path)?;
    let mut command = Command::new("gcc");
    command.current_dir(tree).args(OPTIONS.split_whitespace()).args(options).arg("-c").arg(name).arg("-o").arg(object);
    run(&mut command)
}

/// The C files of a case by their names in the tree: the part before the first dot, and `.c`.
fn sources(case: &Path) -> Outcome<BTreeMap<String, BTreeMap<String, PathBuf>>> {
    let mut folders = vec![case.to_owned()];
    let mut sources: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(case)?.to_string_lossy().into_owned();
            let Some(stem) = name.strip_suffix(".c") else { continue };
            let (stem, version) = stem.split_once('.').unwrap_or((stem, ""));
            sources.entry(format!("{stem}.c")).or_default().insert(version.to_owned(), path);
        }
    }
    Ok(sources)
}

/// A case, compiled: the image and both objects of each unit.
struct Built {
    image: PathBuf,
    units: Vec<(String, Compiled, Compiled)>,
}

fn build(case: &Path, tree: &Path) -> Outcome<Built> {
    let mut objects = Vec::new();
    let mut units = Vec::new();
    let mut files = sources(case)?;
    files.entry("base.c".to_owned()).or_default().insert(String::new(), root().join("base.c"));
    for (number, (name, versions)) in files.iter().enumerate() {
        let object = tree.join(format!("{number}.o"));
        let of_image = ["image", "old", ""].iter().find_map(|version| versions.get(*version));
        compile(tree, name, of_image.ok_or("only a new version")?, &object, &[])?;
        objects.push(object);
        if let (Some(old), Some(new)) = (versions.get("old"), versions.get("new")) {
            let split = ["-ffunction-sections", "-fdata-sections"];
            let read = |source: &Path| {
                let object = tree.join("unit.o");
                compile(tree, name, source, &object, &split)?;
                let bytes = std::fs::read(object)?;
                Ok::<_, Box<dyn std::error::Error>>((Object::parse(&bytes)?, dwarf_layout::of_object(&bytes)?))
            };
            units.push((name.clone(), read(old)?, read(new)?));
        }
    }
    let image = tree.join("vmlinux");
    let mut command = Command::new("ld");
    command.args([
        "-q",
        "-static",
        "--build-id=sha1",
        "-z",
        "max-page-size=0x1000",
        "-z",
        "noexecstack",
        "--no-warn-rwx-segments",
        "-e",
        "_text",
        "-T",
    ]);
    run(command.arg(root().join("kernel.lds")).arg("-o").arg(&image).args(objects))?;
    Ok(Built { image, units })
}

fn entry_sizes() -> BTreeMap<String, u64> {
    let sizes = [
        ("alt_instr", 12),
        ("static_call_site", 8),
        ("jump_entry", 16),
        ("bug_entry", 12),
        ("exception_table_entry", 12),
        ("paravirt_patch_site", 16),
        ("_ddebug", 24),
    ];
    sizes.map(|(name, size)| (name.to_owned(), size)).into()
}

/// What is at an address of the image, with the file of a local symbol.
fn kernel_name(image: &KernelImage, address: u64, kind: impl Fn(&KernelSymbol) -> bool) -> String {
    let mut names: Vec<String> = (image.symbols().at(address).filter(|symbol| kind(symbol)))
        .map(|symbol| match &symbol.file {
            Some(file) => {
                let earlier = image
                    .symbols()
                    .lookup(&symbol.name)
                    .filter(|other| other.file == symbol.file && other.address < address);
                let ordinal = match earlier.count() {
                    0 => String::new(),
                    count => format!(" number {}", count + 1),
                };
                format!("{} of {file}{ordinal}", symbol.name)
            }
            None => symbol.name.clone(),
        })
        .collect();
    names.sort();
    if names.is_empty() { "nothing with a name".to_owned() } else { names.join(" = ") }
}

/// A message with the names of addresses instead of these, which are the compiler's.
fn without_addresses(image: &KernelImage, message: &str) -> String {
    let mut text = String::new();
    let mut rest = message;
    while let Some(at) = rest.find("0xffffffff8") {
        let end = at + 18;
        let address = rest.get(at + 2..end).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        text.push_str(&rest[..at]);
        text.push_str(
            &address.map_or("?".to_owned(), |address| format!("<{}>", kernel_name(image, address, |_| true))),
        );
        rest = rest.get(end..).unwrap_or_default();
    }
    text + rest
}

fn proved(image: &KernelImage, unit: &str, original: &Pieces<'_>, proof: &Proof) -> String {
    let mut rows = Vec::new();
    for (index, piece) in original.iter() {
        let name = &piece.name;
        if let Some(mismatch) = proof.mismatches.get(&index) {
            rows.push(format!("{unit}: not proved {name}: {}", without_addresses(image, &mismatch.to_string())));
        } else if proof.functions.contains_key(&index) {
            rows.push(format!("{unit}: proved {name}"));
        } else if proof.bindings.contains_key(&index) {
            rows.push(format!("{unit}: bound {name}"));
        }
    }
    rows.sort();
    rows.into_iter().map(|row| row + "\n").collect()
}

fn place(image: &KernelImage, payload: &Payload, symbol: u32, addend: i64) -> String {
    let symbol = &payload.symbols[symbol as usize];
    let plus = |addend: i64| if addend == 0 { String::new() } else { format!("{addend:+}") };
    match symbol.place {
        Place::Payload { section: SectionKind::Rodata, offset } if symbol.name == ".rodata" => {
            // A string that is indexed from one: the place is the end of its predecessor.
            let at = (i64::from(offset) + addend) as usize;
            let before = payload.rodata.get(at) == Some(&0);
            let text = payload.rodata.get(at + usize::from(before)..).unwrap_or_default();
            let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
            format!("{:?}{}", String::from_utf8_lossy(&text[..end]), if before { "-1" } else { "" })
        }
        Place::Payload { section: SectionKind::Text, .. } if symbol.name == ".text" => {
            let at = addend as u32;
            let function = payload
                .functions()
                .find(|(offset, function)| *offset <= at && u64::from(at) <= u64::from(*offset) + function.size);
            match function {
                Some((offset, function)) if offset == at => format!("the start of new {}", function.name),
                Some((offset, function)) if u64::from(at - offset) == function.size => {
                    format!("the end of new {}", function.name)
                }
                Some((_, function)) => format!("inside of new {}", function.name),
                None => "new code without a name".to_owned(),
            }
        }
        Place::Payload { section, .. } => format!("new {} in {section:?}{}", symbol.name, plus(addend)),
        Place::Kernel(address) => format!(
            "kernel {}{}",
            kernel_name(image, address, |symbol| symbol.address_kind == AddressKind::Image),
            plus(addend)
        ),
        Place::Absolute(value) => format!(
            "per-cpu {}{}",
            kernel_name(image, value, |symbol| symbol.address_kind == AddressKind::PerCpu),
            plus(addend)
        ),
    }
}

fn linked(image: &KernelImage, linked: &Linked) -> Outcome<String> {
    let mut text = String::new();
    for function in &linked.functions {
        let sites: Vec<String> = function.sites.iter().map(|site| describe_site(image, &site.kind)).collect();
        let at = kernel_name(image, function.old_address, |symbol| symbol.name == function.name);
        writeln!(
            text,
            "{}: replaces {at}, jump at {}, sites [{}]",
            function.unit,
            function.jump_offset,
            sites.join(", ")
        )?;
    }
    for function in linked.manifest_functions.iter().filter(|function| function.old_address.is_none()) {
        writeln!(text, "{}: new function {}", function.unit, function.name)?;
    }
    for datum in &linked.manifest_data {
        writeln!(text, "{}: new datum {} of {} bytes", datum.unit, datum.name, datum.size)?;
    }
    for left in &linked.left_out {
        writeln!(text, "{}: left out {}: {}", left.unit, left.section, left.consequence)?;
    }
    let payload = &linked.payload;
    for reloc in &payload.relocs {
        let holder = payload.symbols.iter().filter_map(|symbol| match symbol.place {
            Place::Payload { section, offset }
                if section == reloc.section && offset <= reloc.offset && !symbol.name.starts_with('.') =>
            {
                Some((offset, &symbol.name))
            }
            _ => None,
        });
        let table = payload.tables.iter().find(|table| {
            reloc.section == SectionKind::Data && (table.offset..table.offset + table.size).contains(&reloc.offset)
        });
        let table = table.filter(|table| table.kind != TableKind::DynamicDebug).map(|table| table.kind.section());
        let holder = table.unwrap_or_else(|| holder.max().map_or("?", |(_, name)| name.as_str()));
        let code = reloc.section == SectionKind::Text;
        let width = if code && matches!(reloc.kind, RelocKind::Pc32 | RelocKind::Plt32) { 4 } else { 0 };
        writeln!(text, "{holder}: {:?} to {}", reloc.kind, place(image, payload, reloc.symbol, reloc.addend + width))?;
    }
    for table in &payload.tables {
        let bytes = &payload.data[table.offset as usize..][..table.size as usize];
        let mut fixed = bytes.to_vec();
        for reloc in payload.relocs.iter().filter(|reloc| reloc.section == SectionKind::Data) {
            let at = reloc.offset.wrapping_sub(table.offset) as usize;
            if let Some(field) = fixed.get_mut(at..at.saturating_add(usize::from(reloc.kind.size()))) {
                assert!(field.iter().all(|byte| *byte == 0), "a relocated field has contents");
                field.fill(0xff);
            }
        }
        let fields: String = fixed.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "table {}: {}", table.kind.section(), fields.replace("ff", "__"))?;
    }
    for fixup in &payload.fixups {
        writeln!(text, "fix-up {}", format!("{fixup:?}").split(' ').next().unwrap_or_default())?;
    }
    Ok(text)
}

fn describe_site(image: &KernelImage, kind: &BootSiteKind) -> String {
    match kind {
        BootSiteKind::StaticCall { key } => format!("StaticCall {}", kernel_name(image, *key, |_| true)),
        BootSiteKind::Constant { variable } => format!("Constant {}", kernel_name(image, *variable, |_| true)),
        BootSiteKind::Alternative { forms } => format!("Alternative of {} forms", forms.len()),
        other => format!("{other:?}"),
    }
}

fn refused(image: &KernelImage, refusals: &[Refusal]) -> String {
    let row = |refusal: &Refusal| {
        format!(
            "{}: refused [{}] {}: {}\n",
            refusal.unit,
            refusal.rule,
            refusal.subject,
            without_addresses(image, &refusal.message)
        )
    };
    refusals.iter().map(row).collect()
}

/// The report on a case, and the word that its folder's name has to begin with.
type Report = (String, BTreeSet<String>);

/// The reports on a case: as the kernel was linked, and without the relocations that the linker has kept
/// (arch/x86/Makefile.postlink removes them since Linux 6.5).
fn examine(case: &Path) -> Outcome<[Report; 2]> {
    let temporary = tempfile::tempdir()?;
    let built = build(case, temporary.path())?;
    let stripped = temporary.path().join("stripped");
    let mut command = Command::new("objcopy");
    run(command.arg("--remove-section=.rela*").arg(&built.image).arg(&stripped))?;
    Ok([examine_image(&built, &built.image, true)?, examine_image(&built, &stripped, false)?])
}

fn examine_image(built: &Built, image: &Path, relocs: bool) -> Outcome<Report> {
    let image = KernelImage::open(image)?;
    assert!(image.has_relocs() == relocs && image.banner().starts_with("Linux version 0.0.0"));
    let sections = DebugSections::load(|name| image.section_data(name))?;
    let index = UnitIndex::build(&sections)?;
    let sizes = entry_sizes();
    let mut text = String::new();
    let mut judged: Vec<(&str, Pieces<'_>, Pieces<'_>, ObjectDiff, Proof)> = Vec::new();
    for (name, (old, before), (new, after)) in &built.units {
        let (original, patched) = (Pieces::cut(old, &sizes)?, Pieces::cut(new, &sizes)?);
        let ranges: Vec<Range<u64>> = (index.named(name).iter())
            .flat_map(|&id| index.unit(id).ranges.iter().map(|range| range.start..range.end))
            .collect();
        assert!(!ranges.is_empty(), "{name} has no code in the image");
        let proof = prove(&image, &original, &ranges);
        text.push_str(&proved(&image, name, &original, &proof));
        let resigned = layout_diff::compare_functions(before, after).into_iter().map(|change| change.name).collect();
        let mut diff = compare_resigned(&original, &patched, resigned);
        diff.locks = layout_diff::locks(after);
        judged.push((name, original, patched, diff, proof));
    }
    let resigned: BTreeSet<String> = (judged.iter())
        .flat_map(|(_, _, patched, diff, _)| diff.resigned_globals(patched).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    judged.iter_mut().for_each(|(_, _, patched, diff, _)| diff.follow(patched, &resigned));
    let tables = BootTables::read(&image, &sizes)?;
    let units: Vec<Unit<'_, '_>> = (judged.iter())
        .map(|(name, original, patched, diff, proof)| Unit { name, original, patched, diff, proof, data: &[] })
        .collect();
    match link(&image, &tables, &units, &BTreeSet::new()) {
        Ok(result) => {
            text.push_str(&linked(&image, &result)?);
            Ok((text, BTreeSet::from(["linked".to_owned()])))
        }
        Err(refusals) => {
            text.push_str(&refused(&image, &refusals));
            Ok((text, refusals.iter().map(|refusal| format!("refused-{}", refusal.rule)).collect()))
        }
    }
}

#[test]
fn every_case_is_as_its_folder_says() -> Outcome {
    let mut cases: Vec<PathBuf> =
        std::fs::read_dir(root())?.collect::<Result<Vec<_>, _>>()?.iter().map(std::fs::DirEntry::path).collect();
    cases.retain(|case| case.is_dir());
    cases.sort();
    assert!(cases.len() >= 30, "{} has only {} cases", root().display(), cases.len());
    let bless = std::env::var_os("LUCOS_BLESS").is_some();
    let mut wrong = String::new();
    for case in cases {
        let name = case.file_name().ok_or("a case has a name")?.to_string_lossy().into_owned();
        let [(text, words), without] = examine(&case).map_err(|error| format!("{name}: {error}"))?;
        if without.1 != words || (name.starts_with("linked") && without.0 != text) {
            writeln!(wrong, "{name}: without the linker's relocations the result is {:?}\n{}", without.1, without.0)?;
        }
        if !words.iter().any(|word| name.starts_with(word.as_str())) {
            writeln!(wrong, "{name}: the result is {words:?}\n{text}")?;
            continue;
        }
        let expected = case.join("expect.txt");
        if bless {
            std::fs::write(&expected, &text)?;
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        if expected != text {
            let diff = similar::TextDiff::from_lines(&expected, &text);
            writeln!(
                wrong,
                "{name}: run with LUCOS_BLESS=1 if this is right\n{}",
                diff.unified_diff().header("expect.txt", "now")
            )?;
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    Ok(())
}
