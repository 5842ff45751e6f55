//! Preparing a bundle in the guest: module memory, the code in it, and the kernel's knowledge of it; and taking it back.
//!
//! Comes in: an admitted guest and a bundle, or an area that nothing can reach any more. Decided: in which order. Goes out: an
//! area that only needs the jumps, or none. Everything here happens while the guest runs; it stands only for the moments that
//! [`super::call`] and the copying need.
//!
//! # Consistency on error
//! An area that was not registered in the end is released again. If not even that is possible it stays in the document, and
//! [`Updater::catch_up`] releases it later.

use super::admit::Admitted;
use super::area::{self, Area, Parts, Witness};
use super::call::{self, Context};
use super::{Times, UpdateError, Updater};
use crate::engine::{Engine, Va};
use crate::guest::Kernel;
use crate::guest::paging::PAGE;
use crate::guest::support::{Operation, Request};
use lpk_format::Bundle;
use std::collections::BTreeSet;

/// Bytes copied in one stop.
const STRETCH: usize = 16 << 10;
/// `-EEXIST`: a module of the name is there (`support/support.c`, `lucos_link`).
const EXISTS: i64 = -17;
/// How many names are tried.
const NAMES: usize = 8;

impl<E: Engine> Updater<E> {
    /// Prepares a bundle.
    ///
    /// # Errors
    /// [`UpdateError`]; see [`self`].
    pub(super) fn prepare(
        &mut self,
        admitted: &Admitted,
        bundle: &Bundle,
        id: &str,
        times: &mut Times,
    ) -> Result<Area, UpdateError> {
        let (kernel, facts) = (admitted.kernel.clone(), admitted.facts.clone());
        let root = kernel.root();
        let context = Context::new(kernel, facts, admitted.boot(), bundle, id)?;
        let wanted = Area {
            bundle: id.to_owned(),
            name: area::module_name(&bundle.manifest.name, &self.names()),
            kept: false,
            base: 0,
            parts: Parts::of(&bundle.payload, &context.facts),
            module: 0,
            witness: Witness { table: root.table.0, five_levels: root.five_levels, page: 0, name: 0 },
        };
        let request = Request::new(Operation::Allocate, wanted.parts.size());
        let allocated = times.measure_in("allocate", |times| self.ask(&context, &request, &wanted, &[], times));
        let base = match allocated {
            Ok(answer) => answer.base,
            Err(error) => {
                self.tidy(&context, None, times);
                return Err(error);
            }
        };
        let area = Area { base, ..wanted };
        match self.move_in(&context, bundle, &area, times) {
            Ok(()) => Ok(self.document.areas.iter().find(|known| known.base == base).cloned().unwrap_or(area)),
            Err(error) => {
                self.tidy(&context, Some(&area), times);
                Err(error)
            }
        }
    }

    /// After an error: leaves nothing in the guest. That error is the one to tell; what cannot be done now is done later.
    pub(super) fn tidy(&mut self, context: &Context, area: Option<&Area>, times: &mut Times) {
        if self.unsettled || self.document.call.as_ref().is_some_and(|call| !call.answered) {
            return;
        }
        let _ = match area {
            Some(area) => self.release(context, area, times),
            None => self.leave(context, times),
        };
    }

    /// Copies the linked payload to its area and has it registered.
    fn move_in(
        &mut self,
        context: &Context,
        bundle: &Bundle,
        area: &Area,
        times: &mut Times,
    ) -> Result<(), UpdateError> {
        let mut taken = self.names();
        let mut name = area.name.clone();
        let mut filled = area::fill(&bundle.payload, &context.facts, area.base, &area.parts, &name)?;
        let mut contents = std::mem::take(&mut filled.contents);
        // What is small goes along with the request; the rest has stops of its own.
        if contents.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > STRETCH {
            times.measure_in("copy", |times| self.copy(&context.kernel, &area.bundle, &contents, times))?;
            contents.clear();
        }
        for _ in 0..NAMES {
            let request = &filled.register;
            match times.measure_in("register", |times| self.ask(context, request, area, &contents, times)) {
                Err(UpdateError::Declined { error: EXISTS, .. }) => {
                    taken.insert(std::mem::take(&mut name));
                    name = area::module_name(&bundle.manifest.name, &taken);
                    filled.register.name.clone_from(&name);
                    let ours = self.document.areas.iter_mut().filter(|known| known.base == area.base);
                    ours.for_each(|known| known.name.clone_from(&name));
                }
                other => return other.map(drop),
            }
        }
        Err(UpdateError::Declined { operation: Operation::Register, error: EXISTS })
    }

    /// Writes to virtual addresses, a stretch of pages in each stop.
    fn copy(
        &mut self,
        kernel: &Kernel,
        bundle: &str,
        contents: &[(u64, Vec<u8>)],
        times: &mut Times,
    ) -> Result<(), UpdateError> {
        let pages: Vec<(u64, &[u8])> = call::pages(contents).collect();
        for stretch in pages.chunks(STRETCH / PAGE) {
            let resets = self.resets;
            self.stop(bundle, times, |engine| {
                if engine.resets() != resets {
                    return Err(UpdateError::OtherBoot);
                }
                for (at, bytes) in stretch {
                    let pa = kernel.translate(engine, Va(*at), "memory that it gave")?;
                    engine.write(pa, bytes)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Has an area that nothing can reach taken back by the guest.
    ///
    /// # Errors
    /// [`UpdateError`]; the area is still in the document.
    pub(super) fn release(&mut self, context: &Context, area: &Area, times: &mut Times) -> Result<(), UpdateError> {
        let mut request = Request::new(Operation::Release, area.parts.size());
        // What the document knows is newer than what the caller knows.
        let module = self.document.areas.iter().find(|known| known.base == area.base).map_or(0, |known| known.module);
        (request.base, request.module) = (area.base, module);
        times.measure_in("release", |times| {
            let answer = self.ask(context, &request, area, &[], times);
            self.leave(context, times)?;
            answer.map(drop)
        })
    }

    /// Names of the modules that are ours.
    fn names(&self) -> BTreeSet<String> {
        self.document.areas.iter().map(|area| area.name.clone()).collect()
    }
}
