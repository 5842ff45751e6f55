//! Rules of hooks.
//!
//! Comes in: a [`Bundle`]. Decided: whether each hook is a function of the new code, about something that the bundle changes.
//! Goes out: the first [`Problem`].

use super::{Image, Problem, limit, line};
use crate::{Bundle, Hook, HookSubject, SectionKind, UpdateType, limits};
use std::collections::BTreeSet;

pub(super) fn check(bundle: &Bundle, image: Image<'_>) -> Result<(), Problem> {
    let hooks = &bundle.payload.hooks;
    limit("hooks", hooks.len(), limits::HOOKS)?;
    if !hooks.is_empty() && bundle.manifest.update_type != UpdateType::Type2 {
        return Err(Problem::HooksOfType1(hooks.len()));
    }
    let functions: BTreeSet<u32> = bundle.payload.functions().map(|(offset, _)| offset).collect();
    let key = |hook: &Hook| (hook.kind, hook.subject.name().to_owned(), hook.subject.old_address());
    if let Some(pair) = hooks.windows(2).find(|pair| key(&pair[0]) >= key(&pair[1])) {
        return Err(Problem::HookOrder { kind: pair[1].kind, subject: pair[1].subject.name().to_owned() });
    }
    hooks.iter().try_for_each(|hook| one(bundle, image, &functions, hook))
}

fn one(bundle: &Bundle, image: Image<'_>, functions: &BTreeSet<u32>, hook: &Hook) -> Result<(), Problem> {
    let (kind, subject, offset) = (hook.kind, hook.subject.name().to_owned(), hook.offset);
    if !functions.contains(&offset) {
        return Err(Problem::HookFunction { kind, subject, offset });
    }
    let fits = match hook.subject {
        HookSubject::Update => !kind.is_of_function() && !kind.is_of_datum(),
        HookSubject::Function { .. } => kind.is_of_function(),
        HookSubject::Datum { .. } => kind.is_of_datum(),
    };
    if !fits {
        return Err(Problem::HookSubject { kind, subject });
    }
    match &hook.subject {
        HookSubject::Update => Ok(()),
        HookSubject::Function { name, old_address } => {
            let replaced =
                |function: &crate::FunctionPatch| function.old_address == *old_address && function.name == *name;
            let known = bundle.functions.iter().any(replaced);
            if known { Ok(()) } else { Err(Problem::HookSubject { kind, subject }) }
        }
        HookSubject::Datum { name, old_address, old_size, section, new_offset, new_size } => {
            line("the name of a hook's datum", name, limits::SYMBOL_NAME_LEN)?;
            image.check("datum of a hook", *old_address, u64::from(*old_size))?;
            let end = new_offset.checked_add(*new_size);
            let inside = end.is_some_and(|end| end <= bundle.payload.size_of(*section));
            let is_data = *section != SectionKind::Text && *old_size != 0 && *new_size != 0;
            if inside && is_data { Ok(()) } else { Err(Problem::HookSubject { kind, subject }) }
        }
    }
}
