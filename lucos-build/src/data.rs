//! What becomes of existing types and data: Type 2.
//!
//! Comes in: what each unit's change does to existing types and data, and what the author says of it. Decided: a strategy per
//! datum, and whether the types can be left to it. Goes out: [`Decided`]: plans for the linker, rows for the report, and the
//! reasons that remain. `docs/classification.md` lists the rules.

use crate::objects::{self, Heap, Placed, Seen, Stuck as StuckObjects};
use crate::overrides::{DatumOverride, MemberRule, Objects, Overrides, Strategy, Word};
use crate::report::{DataChangeRow, Reason, TypeRow};
use crate::slack;
use diff_analyzer::classify::{Classification, DatumFinding, Fate, TypeFinding};
use diff_analyzer::dwarf_layout::Place;
use diff_analyzer::layout_diff;
use diff_analyzer::transfer::{Bits, How, Move, Stuck, Transfer};
use prelink::dwarf::DwarfError;
use prelink::link::data::{DatumPlan, Planned};
use prelink::prove::Proof;
use prelink::vmlinux::KernelImage;
use std::collections::BTreeMap;

/// A unit whose change is looked at.
pub struct Unit<'a> {
    /// Path relative to the source tree.
    pub name: &'a str,
    /// The image that its code is in.
    pub image: &'a KernelImage,
    /// What was proved about its original.
    pub proof: &'a Proof,
    /// What changes.
    pub found: &'a Classification,
}

/// What was decided.
#[derive(Debug, Default)]
pub struct Decided {
    /// What becomes of the data of each unit, in the order of the units.
    pub plans: Vec<Vec<DatumPlan>>,
    /// Data for the report.
    pub data: Vec<DataChangeRow>,
    /// Types for the report.
    pub types: Vec<TypeRow>,
    /// Objects on the heap that get a value for what is new in them.
    pub objects: Vec<Placed>,
    /// What no strategy can do, with the place of the declaration.
    pub reasons: Vec<(Reason, Option<Place>)>,
}

impl Decided {
    /// Whether nothing that exists changes.
    pub fn is_type1(&self) -> bool {
        self.data.is_empty() && self.types.is_empty()
    }
}

/// Decides about all units.
///
/// # Errors
/// [`DwarfError`] when the kernel's debug information cannot be used.
pub fn decide(units: &[Unit<'_>], overrides: &Overrides, heap: &Heap<'_, '_>) -> Result<Decided, DwarfError> {
    let mut decided = Decided::default();
    let mut types: BTreeMap<(&str, &str), TypeRow> = BTreeMap::new();
    let mut of_caches: BTreeMap<&str, Seen> = BTreeMap::new();
    for unit in units {
        for finding in &unit.found.types {
            // A type of a header is found again in every unit that sees it.
            let row = types.entry((&finding.change.name, &finding.message)).or_insert_with(|| type_row(finding));
            row.units.insert(unit.name.to_owned());
            row.users.extend(finding.users.iter().cloned());
            row.data.extend(finding.data.iter().cloned());
            match overrides.objects(&finding.change.name) {
                Some(said) if said.objects == Objects::Kmalloc => match slack::in_slack(finding, said) {
                    Ok(strategy) => row.strategy = Some(strategy),
                    Err(reason) => {
                        let reason = reason.of_unit(unit.name).at(unit.name.to_owned(), None);
                        decided.reasons.push((reason, finding.change.place.clone()));
                    }
                },
                Some(_) => of_caches.entry(&finding.change.name).or_default().add(unit.image, finding),
                None if overrides.silences(finding.rule, &finding.change.name) => {}
                None => decided.reasons.push((of_type(finding, unit.name), finding.change.place.clone())),
            }
        }
        let plans = unit.found.data.iter().filter_map(|finding| datum(unit, finding, overrides, &mut decided));
        let plans = plans.collect();
        decided.plans.push(plans);
    }
    for (name, seen) in of_caches {
        of_cache(name, &seen, &mut types, overrides, heap, &mut decided)?;
    }
    decided.types = types.into_values().collect();
    Ok(decided)
}

/// What becomes of the objects of a type that are all of one cache.
fn of_cache(
    name: &str,
    seen: &Seen,
    types: &mut BTreeMap<(&str, &str), TypeRow>,
    overrides: &Overrides,
    heap: &Heap<'_, '_>,
    decided: &mut Decided,
) -> Result<(), DwarfError> {
    let mut rows: Vec<&mut TypeRow> = types.values_mut().filter(|row| row.name == name).collect();
    let (Some(said), [row, others @ ..]) = (overrides.objects(name), rows.as_mut_slice()) else { return Ok(()) };
    let decision = match others {
        [] => objects::decide(row, seen, said, heap),
        [other, ..] => {
            let message = format!("{}; elsewhere: {}: its objects cannot be of one cache", row.message, other.message);
            Err(Reason::new("override-refused", message).help("make it the same type in all units").into())
        }
    };
    match decision {
        Ok(placed) => decided.objects.push(placed),
        Err(StuckObjects::Dwarf(error)) => return Err(error),
        Err(StuckObjects::Reason(reason)) => {
            let units: Vec<String> = row.units.iter().cloned().collect();
            let first = units.first().cloned().unwrap_or_default();
            let reason = units.iter().fold(*reason, |reason, unit| reason.of_unit(unit)).at(first, None);
            decided.reasons.push((reason, row.place.clone()));
        }
    }
    Ok(())
}

fn type_row(finding: &TypeFinding) -> TypeRow {
    TypeRow {
        name: finding.change.name.clone(),
        rule: finding.rule.to_owned(),
        message: finding.message.clone(),
        strategy: None,
        objects: None,
        old_size: finding.change.old_size,
        new_size: finding.change.new_size,
        because: finding.change.consequence_of.clone(),
        members: finding.change.members.clone(),
        enumerators: finding.change.enumerators.clone(),
        old: layout_diff::listing(&finding.old),
        new: layout_diff::listing(&finding.new),
        units: Default::default(),
        users: Default::default(),
        data: Default::default(),
        place: finding.change.place.clone(),
        layouts: Box::new([finding.old.clone(), finding.new.clone()]),
    }
}

fn of_type(finding: &TypeFinding, unit: &str) -> Reason {
    let name = &finding.change.name;
    let (what, help) = match finding.rule {
        "enum-value" => (
            "what the kernel has stored keeps the old value",
            "if no value of it is stored anywhere, say so in the file beside the diff",
        ),
        "type-additive" => (
            "objects of it that exist have no initial value there, and are not known",
            "if all objects are of one slab cache, [type.\"…\"] objects = \"cache\", cache = \"…\" in the file beside the diff has them \
             found and initialised when the update is applied; if each object is an allocation of its own, [type.\"…\"] objects = \
             \"kmalloc\" has it checked that what is new fits; if new code copes with whatever is there, say so",
        ),
        _ => (
            "objects of it on the heap, on stacks and in other objects are not known and cannot be converted",
            "put what is new into the room that the type has between and behind its members, or keep it elsewhere; if the data \
             listed are all objects of it, say so in the file beside the diff",
        ),
    };
    let help = format!("{help}: [[silence]] rule = \"{}\", subject = \"{name}\", reason = \"…\"", finding.rule);
    Reason::new(finding.rule, format!("{}: {what}", finding.message)).of_unit(unit).at(unit.to_owned(), None).help(help)
}

/// What becomes of one datum; `None` when that is not decided, for reasons that are added.
fn datum(unit: &Unit<'_>, finding: &DatumFinding, overrides: &Overrides, decided: &mut Decided) -> Option<DatumPlan> {
    let said = overrides.datum(&finding.name);
    let (original, patched) = finding.pieces;
    let old_address = unit.proof.address(original);
    let outcome = plan(unit, finding, said, old_address, overrides);
    let strategy = match &outcome {
        Ok(Planned::Kept) => "kept",
        Ok(Planned::InPlace { .. }) => "in-place",
        Ok(Planned::Moved { .. }) => "moved",
        Ok(Planned::ByHooks) => "by-hooks",
        Err(_) => "refused",
    };
    let transfers = match &outcome {
        Ok(Planned::Moved { to_new, to_old }) => Some((to_new, to_old)),
        Err(_) => finding.transfers.as_ref().map(|(to_new, to_old)| (to_new, to_old)),
        Ok(_) => None,
    };
    decided.data.push(DataChangeRow {
        name: finding.name.clone(),
        unit: unit.name.to_owned(),
        rule: finding.rule.to_owned(),
        message: finding.message.clone(),
        strategy: strategy.to_owned(),
        old_address: old_address.map(|address| format!("{address:#x}")),
        old_size: finding.sizes.0,
        new_size: finding.sizes.1,
        written: written(&outcome),
        to_new: transfers.map(|(to_new, _)| lines(to_new)).unwrap_or_default(),
        to_old: transfers.map(|(_, to_old)| lines(to_old)).unwrap_or_default(),
        users: finding.users.clone(),
        reason: said.map(|said| said.reason.clone()),
        place: finding.place.clone(),
    });
    match outcome {
        Ok(fate) => Some(DatumPlan { original, patched, fate }),
        Err(refused) => {
            decided.reasons.extend(refused.into_iter().map(|reason| {
                let message = format!("{}: {}", finding.message, reason.message);
                (Reason { message, ..reason }.of_unit(unit.name).at(unit.name.to_owned(), None), finding.place.clone())
            }));
            None
        }
    }
}

/// Bytes that are written to a datum that stays, for people.
fn written(outcome: &Result<Planned, Vec<Reason>>) -> Vec<String> {
    let Ok(Planned::InPlace { added, edited, .. }) = outcome else { return Vec::new() };
    let shown = |what: &str, range: &std::ops::Range<u64>| format!("{what} {}..{}", range.start, range.end);
    let added = added.iter().map(|range| shown("new", range));
    added.chain(edited.iter().map(|range| shown("changed", range))).collect()
}

fn lines(transfer: &Transfer) -> Vec<String> {
    transfer.to_string().lines().map(str::to_owned).collect()
}

/// The strategy, or why there is none.
fn plan(
    unit: &Unit<'_>,
    finding: &DatumFinding,
    said: Option<&DatumOverride>,
    old_address: Option<u64>,
    overrides: &Overrides,
) -> Result<Planned, Vec<Reason>> {
    let asked = said.and_then(|said| said.strategy);
    if asked == Some(Strategy::Keep) {
        return if finding.sizes.0 >= finding.sizes.1 {
            Ok(Planned::Kept)
        } else {
            let message = format!("it cannot be kept: new code expects {} bytes", finding.sizes.1);
            Err(vec![Reason::new("override-refused", message).help("move it")])
        };
    }
    match (&finding.fate, asked) {
        (Fate::Stuck(why), _) => {
            let help = "leave the datum as it is and add a new one, or say `strategy = \"keep\"` if new code copes with the old one";
            Err(vec![Reason::new(finding.rule, why.clone()).help(help)])
        }
        (_, Some(Strategy::Hooks)) => by_hooks(said),
        (Fate::Unknown(why), _) => {
            let help = "carry it by hooks (`strategy = \"hooks\"` in the file beside the diff, and --hooks), or leave the datum as it is \
                        and add a new one";
            Err(vec![Reason::new(finding.rule, why.clone()).help(help)])
        }
        (Fate::InPlace { added, edited }, None | Some(Strategy::InPlace)) => {
            match in_room(unit, finding, old_address) {
                Ok(()) if added.is_empty() && edited.is_empty() => Ok(Planned::Kept),
                Ok(()) => {
                    let overwrite = said.is_some_and(|said| said.overwrite);
                    Ok(Planned::InPlace { added: added.clone(), edited: edited.clone(), overwrite })
                }
                Err(why) if asked.is_some() => Err(vec![Reason::new("override-refused", why)]),
                Err(_) => moved(finding, said, overrides),
            }
        }
        (Fate::Moved, Some(Strategy::InPlace)) => {
            let message = "it cannot stay in place: what it had does not keep its place".to_owned();
            Err(vec![Reason::new("override-refused", message).help("move it")])
        }
        _ => moved(finding, said, overrides),
    }
}

/// Whether a datum that grows in place has the room, or why not.
fn in_room(unit: &Unit<'_>, finding: &DatumFinding, old_address: Option<u64>) -> Result<(), String> {
    let (old, new) = finding.sizes;
    if new <= old {
        return Ok(());
    }
    let Some(address) = old_address else { return Err("where it lies in the image is not proved".to_owned()) };
    if unit.image.is_room(&(address + old..address + new)) {
        Ok(())
    } else {
        Err(format!("it grows by {} bytes, and something else lies behind it", new - old))
    }
}

/// A datum that moves, and whose contents hooks carry: they know what points to it, too.
fn by_hooks(said: Option<&DatumOverride>) -> Result<Planned, Vec<Reason>> {
    let has_rules = said.is_some_and(|said| said.overwrite || !said.to_new.is_empty() || !said.to_old.is_empty());
    if has_rules {
        let message = "hooks carry its contents: `to-new`, `to-old` and `overwrite` mean nothing then";
        return Err(vec![Reason::new("override-refused", message).help("leave them out")]);
    }
    Ok(Planned::ByHooks)
}

/// A datum that a new one takes the place of.
fn moved(finding: &DatumFinding, said: Option<&DatumOverride>, overrides: &Overrides) -> Result<Planned, Vec<Reason>> {
    let Some((to_new, to_old)) = finding.transfers.clone() else {
        return Err(vec![Reason::new(finding.rule, "how its contents are to be carried is not known")]);
    };
    let mut reasons = Vec::new();
    if !overrides.silences("data-anchored", &finding.name) {
        reasons.extend(finding.anchors.iter().map(|(member, why)| {
            let help = "keep the datum and add a new one; carry it by hooks that follow what points to it (`strategy = \"hooks\"` in the \
                        file beside the diff, and --hooks); or, if nothing points there when the update is applied, silence it there";
            Reason::new("data-anchored", format!("it would move, and of `{member}` {why}")).help(help)
        }));
    }
    let mut direction = |name: &str, transfer: Transfer, rules: Option<&BTreeMap<String, MemberRule>>| {
        let (transfer, unknown) = with_rules(transfer, rules);
        reasons.extend(transfer.stuck.iter().map(|stuck| {
            let help = format!(
                "say in the file beside the diff what becomes of it: [data.{}] {name} = {{ \"{}\" = … }}, or strategy = \"hooks\"",
                finding.name, stuck.member
            );
            let member = if stuck.member.is_empty() { "it" } else { &stuck.member };
            Reason::new("data-transfer", format!("{name}: `{member}` cannot be carried: {}", stuck.why)).help(help)
        }));
        reasons.extend(unknown.into_iter().map(|member| {
            Reason::new("override-unused", format!("{name}: it has no member `{member}`")).help("correct the name")
        }));
        transfer
    };
    let to_new = direction("to-new", to_new, said.map(|said| &said.to_new));
    let to_old = direction("to-old", to_old, said.map(|said| &said.to_old));
    if reasons.is_empty() { Ok(Planned::Moved { to_new, to_old }) } else { Err(reasons) }
}

/// A transfer with what the author says of members, and names that he gives and the datum does not have.
fn with_rules(mut transfer: Transfer, rules: Option<&BTreeMap<String, MemberRule>>) -> (Transfer, Vec<String>) {
    let mut unknown = Vec::new();
    for (member, rule) in rules.into_iter().flatten() {
        let is_meant = |name: &str| {
            name == member || name.strip_prefix(member.as_str()).is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        let steps: Vec<Move> = transfer.moves.extract_if(.., |step| is_meant(&step.member)).collect();
        let stuck: Vec<Stuck> = transfer.stuck.extract_if(.., |stuck| is_meant(&stuck.member)).collect();
        if steps.is_empty() && stuck.is_empty() {
            unknown.push(member.clone());
        }
        match rule {
            MemberRule::Word(Word::Skip) => transfer.kept.push(member.clone()),
            MemberRule::Word(Word::Carry) => {
                transfer.moves.extend(steps);
                for stuck in stuck {
                    match stuck.step {
                        Some(step) => transfer.moves.push(step),
                        None => transfer.stuck.push(stuck),
                    }
                }
            }
            MemberRule::Constant(value) => {
                let targets: Vec<Bits> =
                    steps.iter().map(|step| step.to).chain(stuck.iter().map(|stuck| stuck.to)).collect();
                match targets.as_slice() {
                    [to] if to.size <= 64 && (to.size == 64 || value >> to.size == 0) => {
                        let from = Bits { offset: 0, size: 8 };
                        transfer.moves.push(Move { member: member.clone(), from, to: *to, how: How::Constant(*value) });
                    }
                    targets => {
                        let to = targets.first().copied().unwrap_or(Bits { offset: 0, size: 0 });
                        let why = format!("{value:#x} is no value of it");
                        transfer.stuck.push(Stuck { member: member.clone(), to, why, step: None });
                    }
                }
            }
        }
    }
    transfer.moves.sort_by_key(|step| step.to);
    (transfer, unknown)
}
