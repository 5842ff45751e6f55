//! The file opens cleanly in the tools that people use for ELF files.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{TEXT, file};
use lpk_format::*;

/// Writes the sample where the tools find it.
fn on_disk(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, file()).expect("the folder of the tests is writable");
    path
}

/// What a tool prints; `None` if it is not installed and need not be.
fn output(tool: &str, arguments: &[&str], name: &str) -> Option<String> {
    let run = match Command::new(tool).args(arguments).arg(on_disk(name)).output() {
        Ok(run) => run,
        Err(error) if std::env::var_os("LUCOS_REQUIRE_ALL").is_none() => {
            eprintln!("skipped: {tool} could not be started: {error}");
            return None;
        }
        Err(error) => panic!("{tool} could not be started: {error}"),
    };
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success() && errors.is_empty(), "{tool}: {}\n{errors}", run.status);
    assert!(!text.to_lowercase().contains("warning"), "{tool} warns:\n{text}");
    Some(text)
}

fn has_line(text: &str, parts: &[&str]) -> bool {
    text.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

#[test]
fn readelf_shows_sections_symbols_relocations_and_notes() {
    let Some(text) = output("readelf", &["-aW"], "readelf.lpk") else { return };
    let id = read(&file()).expect("just written").id.to_string();
    for parts in [
        &["REL (Relocatable file)"] as &[&str],
        &[".lucos.kernel", "NOBITS", "ffffffff81000000"],
        &[".text", "PROGBITS", "AX"],
        &["FUNC", "LOCAL", "count"],
        &["FILE", "LOCAL", "ABS", "support"],
        &["FUNC", "LOCAL", "lucos_support_interrupt"],
        &["R_X86_64_PC64", "_printk"],
        &["R_X86_64_PLT32", "_printk"],
        &["Build ID", &id],
        &["Lucos", "0x00000014", "0x00004c01"],
    ] {
        assert!(has_line(&text, parts), "no line with {parts:?} in:\n{text}");
    }
}

#[test]
fn objdump_disassembles_new_code_with_names() {
    let Some(text) = output("objdump", &["-drt"], "objdump.lpk") else { return };
    for parts in [&["<show>:"] as &[&str], &["R_X86_64_PLT32", "_printk-0x4"], &["R_X86_64_PC32", ".LC0-0x4"]] {
        assert!(has_line(&text, parts), "no line with {parts:?} in:\n{text}");
    }
    // Kernel symbols are shown at their link addresses.
    assert!(has_line(&text, &[&format!("{:x}", TEXT + 0x2000), ".lucos.kernel", "_printk"]), "{text}");
}

#[test]
fn gdb_disassembles_a_new_function() {
    let commands = ["-nx", "-batch", "-ex", "disassemble count", "-ex", "info symbol show"];
    let Some(text) = output("gdb", &commands, "gdb.lpk") else { return };
    for parts in [&["Dump of assembler code for function count"] as &[&str], &["endbr64"], &["show in section .text"]] {
        assert!(has_line(&text, parts), "no line with {parts:?} in:\n{text}");
    }
}
