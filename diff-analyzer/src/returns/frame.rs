//! Where the stack is at each instruction, and what each reads and writes.
//!
//! Comes in: a [`Graph`]. Decided: how far the stack pointer is below the return address, which registers hold addresses of the frame, and
//! whether such an address leaves the function's hands. Goes out: [`Frames`]: registers and bytes of the stack that each instruction
//! reads and writes.
//!
//! Whoever knows an address of the frame may read and write it: then all calls, and all that goes through pointers, read and write one more
//! place, [`Location::Shared`], which stands for everything in the frame.
//!
//! A call reads the registers of arguments and what may be arguments on the stack, and leaves nothing of the registers that
//! are not its caller's (psABI 1.0, 3.2.1, figure 3.4), except where assembly calls a function that keeps them.

use super::Why;
use super::code::{Graph, Kind, Node};
use iced_x86::{InstructionInfoFactory, MemorySize, Mnemonic, OpAccess, OpKind, Register, UsedMemory};
use std::collections::BTreeSet;

/// A place that an instruction reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Location {
    /// A general register, by number.
    Register(u8),
    /// All flags.
    Flags,
    /// A byte of the stack, by its distance from the return address.
    Stack(i64),
    /// What others may know of the frame.
    Shared,
    /// The second register of results, as a call has left it: only who reads that register by name looks for it. Whether
    /// a call has such a result is not known, and most have none.
    SecondResult,
}

/// How a place is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing of before is left.
    Surely,
    /// It may stay as it was.
    Maybe,
    /// By nobody: what it holds is of no use.
    Undefined,
}

/// What an instruction reads and writes.
#[derive(Debug, Clone, Default)]
pub(super) struct Access {
    pub reads: BTreeSet<Location>,
    pub writes: Vec<(Location, Written)>,
    /// Whether it writes memory that others know.
    pub stores: bool,
    /// Whether it reads memory other than the frame.
    pub loads: bool,
}

impl Access {
    fn write(&mut self, location: Location, surely: bool) {
        self.writes.push((location, if surely { Written::Surely } else { Written::Maybe }));
    }
}

/// Addresses of the frame in registers, as distances from the return address.
pub(super) type Held = [Option<i64>; 16];

/// What is known of the frame at each instruction.
pub(super) struct Frames {
    held: Vec<Option<Held>>,
    /// What each reads and writes; nothing for one that never runs.
    pub access: Vec<Access>,
    /// Whether others may know an address in the frame.
    pub escapes: bool,
}

const AX: u8 = 0;
const DX: u8 = 2;
const SP: u8 = 4;
const BP: u8 = 5;
/// Registers of arguments.
const ARGUMENTS: [u8; 6] = [7, 6, 2, 1, 8, 9];
/// Registers that a called function need not keep.
const SCRATCH: [u8; 9] = [AX, 1, DX, 6, 7, 8, 9, 10, 11];
/// Registers that a caller expects back, and those of results.
const RETURNED: [u8; 8] = [AX, DX, 3, BP, 12, 13, 14, 15];
/// More bytes of arguments on the stack than functions of a kernel take.
const STACK_ARGUMENTS: i64 = 256;
/// Bytes of the largest frame that is looked at.
const FRAME_LIMIT: i64 = 2 * 1024;
/// Functions that assembly calls and that keep registers, by the beginning of their names (arch/x86/include/asm/preempt.h,
/// uaccess.h, arch_hweight.h, paravirt.h).
const KEEPING: [&str; 10] = [
    "__SCT__",
    "preempt_schedule",
    "__get_user_",
    "__put_user_",
    "__sw_hweight",
    "copy_user_",
    "__copy_user_",
    "clear_page",
    "__raw_callee_save_",
    "rep_",
];
/// `OF`, `SF`, `ZF`, `AF`, `CF`, `PF`, as `iced_x86::RflagsBits` has them: who changes all of them leaves nothing of before.
const STATUS: u32 = 0x3f;

impl Frames {
    /// What registers hold before an instruction.
    pub(super) fn held(&self, node: usize) -> Option<Held> {
        self.held[node]
    }

    /// Bytes from the return address to the stack pointer; negative.
    pub(super) fn depth(&self, node: usize) -> Option<i64> {
        self.held[node].and_then(|held| held[usize::from(SP)])
    }
}

/// A call after which nothing of the scratch registers is left but results.
pub(super) fn is_ordinary(graph: &Graph, node: &Node) -> bool {
    let keeps = |name: &String| KEEPING.iter().any(|beginning| name.starts_with(beginning));
    match &node.kind {
        Kind::Call(name, is_here) => {
            node.site.is_none() && (graph.is_profiled || !is_here) && !name.as_ref().is_some_and(keeps)
        }
        _ => false,
    }
}

/// The number of the address register that an operand in memory begins with, if it is one of the frame.
pub(super) fn in_frame(held: &Held, base: Register, displacement: u64) -> Option<i64> {
    let at = held[number(base)?]?.checked_add(displacement as i64)?;
    (at.abs() < FRAME_LIMIT).then_some(at)
}

fn number(register: Register) -> Option<usize> {
    (register.is_gpr64()).then(|| register.number())
}

/// Follows the stack through a function.
///
/// # Errors
/// [`Why`] when it depends on the way where the stack pointer is, or vector registers are used.
pub(super) fn follow(graph: &Graph) -> Result<Frames, Why> {
    let mut frames = Frames {
        held: vec![None; graph.nodes.len()],
        access: vec![Access::default(); graph.nodes.len()],
        escapes: false,
    };
    let mut first: Held = [None; 16];
    first[usize::from(SP)] = Some(0);
    frames.held[graph.entry] = Some(first);
    let mut open = vec![graph.entry];
    while let Some(index) = open.pop() {
        let Some(before) = frames.held[index] else { continue };
        let after = behind(&graph.nodes[index], &before);
        for next in graph.after(index) {
            let merged = match frames.held[next] {
                None => after,
                Some(known) => std::array::from_fn(|at| known[at].filter(|value| after[at] == Some(*value))),
            };
            // What may be an address of the frame, and is not followed any further, is known to others.
            let lost = |known: &Held| (0..16).any(|at| known[at].is_some() && merged[at].is_none());
            frames.escapes |= lost(&after) || frames.held[next].is_some_and(|known| lost(&known));
            if frames.held[next] != Some(merged) {
                frames.held[next] = Some(merged);
                open.push(next);
            }
        }
    }
    for &index in &graph.reached {
        let held = frames.held[index].ok_or(Why::Stack(graph.nodes[index].at))?;
        frames.escapes |= lets_out(&graph.nodes[index], &held);
    }
    let mut factory = InstructionInfoFactory::new();
    for &index in &graph.reached {
        let node = &graph.nodes[index];
        let held = frames.held[index].ok_or(Why::Stack(node.at))?;
        let depth = held[usize::from(SP)].filter(|depth| (-FRAME_LIMIT..=0).contains(depth));
        let place = Place { graph, node, held, depth: depth.ok_or(Why::Stack(node.at))?, escapes: frames.escapes };
        frames.access[index] = place.access(&mut factory)?;
    }
    Ok(frames)
}

/// What registers hold behind an instruction.
fn behind(node: &Node, held: &Held) -> Held {
    let instruction = &node.instruction;
    let mut after = *held;
    let sp = usize::from(SP);
    let register = |operand: u32| match instruction.op_kind(operand) {
        OpKind::Register => number(instruction.op_register(operand)),
        _ => None,
    };
    if let Kind::Call(..) = node.kind {
        SCRATCH.iter().for_each(|scratch| after[usize::from(*scratch)] = None);
        return after;
    }
    match (instruction.mnemonic(), (instruction.op_count() > 0).then(|| register(0)).flatten()) {
        (Mnemonic::Mov, Some(to)) => after[to] = register(1).and_then(|from| held[from]),
        (Mnemonic::Lea, Some(to)) => {
            let plain = instruction.memory_index() == Register::None;
            let value = in_frame(held, instruction.memory_base(), instruction.memory_displacement64());
            after[to] = value.filter(|_| plain);
        }
        (mnemonic @ (Mnemonic::Add | Mnemonic::Sub), Some(to)) => {
            let by = instruction.try_immediate(1).ok().map(|by| by as i64);
            let by = by.map(|by| if mnemonic == Mnemonic::Sub { by.wrapping_neg() } else { by });
            after[to] = held[to].zip(by).and_then(|(value, by)| value.checked_add(by));
        }
        (Mnemonic::Leave, _) => {
            after[sp] = held[usize::from(BP)].and_then(|value| value.checked_add(8));
            after[usize::from(BP)] = None;
        }
        _ => {
            let by = i64::from(instruction.stack_pointer_increment());
            let mut factory = InstructionInfoFactory::new();
            for used in factory.info(instruction).used_registers() {
                let full = used.register().full_register();
                if let (Some(at), true) = (number(full), writes(used.access()).is_some()) {
                    after[at] = None;
                }
            }
            if by != 0 {
                after[sp] = held[sp].and_then(|value| value.checked_add(by));
                if instruction.mnemonic() == Mnemonic::Pop && register(0) == Some(sp) {
                    after[sp] = None;
                }
            }
        }
    }
    after
}

/// Whether an instruction gives an address of the frame to anything but the stack pointer and the frame pointer.
fn lets_out(node: &Node, held: &Held) -> bool {
    let instruction = &node.instruction;
    if matches!(node.kind, Kind::Call(..) | Kind::Return | Kind::Leave) {
        return false;
    }
    let operand = |index: u32| match instruction.op_kind(index) {
        OpKind::Register => number(instruction.op_register(index).full_register()),
        _ => None,
    };
    let to = (instruction.op_count() > 0).then(|| operand(0)).flatten();
    let after = behind(node, held);
    let follows = matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea | Mnemonic::Add | Mnemonic::Sub);
    match to {
        Some(at) if instruction.mnemonic() == Mnemonic::Push => held[at].is_some(),
        _ if matches!(instruction.mnemonic(), Mnemonic::Pop | Mnemonic::Leave) => false,
        // The stack pointer and the frame pointer, as long as they are followed.
        Some(at) if follows && (at == usize::from(SP) || at == usize::from(BP)) => {
            after[at].is_none()
                && (held[at].is_some() && !is_plain_move(instruction) || reads_address(instruction, held, 1))
        }
        Some(at) => {
            after[at].is_some()
                || held[at].is_some() && !is_plain_move(instruction)
                || reads_address(instruction, held, 1)
        }
        None => reads_address(instruction, held, 0),
    }
}

/// Whether an instruction does not read the register that it writes.
fn is_plain_move(instruction: &iced_x86::Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea | Mnemonic::Movzx | Mnemonic::Movsxd)
}

/// Whether an operand from `first` on is an address of the frame, or counts from one.
fn reads_address(instruction: &iced_x86::Instruction, held: &Held, first: u32) -> bool {
    let is_held = |register: Register| number(register.full_register()).is_some_and(|at| held[at].is_some());
    let by_register = (first..instruction.op_count())
        .any(|index| instruction.op_kind(index) == OpKind::Register && is_held(instruction.op_register(index)));
    let by_index = is_held(instruction.memory_base()) && instruction.memory_index() != Register::None
        || is_held(instruction.memory_index());
    let by_bit = is_held(instruction.memory_base()) && is_bit_string(instruction);
    let by_lea = instruction.mnemonic() == Mnemonic::Lea && is_held(instruction.memory_base());
    by_register || by_index || by_bit || by_lea
}

/// Whether something is written, and surely.
fn writes(access: OpAccess) -> Option<bool> {
    match access {
        OpAccess::Write | OpAccess::ReadWrite => Some(true),
        OpAccess::CondWrite | OpAccess::ReadCondWrite => Some(false),
        _ => None,
    }
}

fn reads(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// Whether an instruction counts bits from its operand, far beyond it (Intel SDM vol. 2, BT).
fn is_bit_string(instruction: &iced_x86::Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register
}

/// An instruction, and what is known when it runs.
struct Place<'a> {
    graph: &'a Graph,
    node: &'a Node,
    held: Held,
    depth: i64,
    escapes: bool,
}

impl Place<'_> {
    fn access(&self, factory: &mut InstructionInfoFactory) -> Result<Access, Why> {
        let (mut access, node) = (Access::default(), self.node);
        self.registers(&mut access, factory, &node.instruction, true)?;
        match &node.kind {
            Kind::Call(name, _) => self.call(&mut access, name.as_deref()),
            Kind::Return => access.reads.extend(RETURNED.map(Location::Register)),
            Kind::Leave => {
                access.reads.extend(all_registers());
                access.reads.extend((8..8 + STACK_ARGUMENTS).map(Location::Stack));
            }
            _ => {}
        }
        for used in factory.info(&node.instruction).used_memory() {
            // A call puts its return address below the frame; a return takes it from above.
            let is_own = writes(used.access()).is_some() || matches!(node.kind, Kind::Return);
            if !(is_own && matches!(node.kind, Kind::Call(..) | Kind::Return)) {
                self.memory(&mut access, used);
            }
        }
        for replacement in &node.replacements {
            self.replacement(&mut access, factory, replacement)?;
        }
        if self.escapes && matches!(node.kind, Kind::Call(..) | Kind::Leave) {
            access.reads.insert(Location::Shared);
            access.write(Location::Shared, false);
        }
        if node.site.is_some() || !node.handler.is_empty() || node.steps[2].is_some() {
            // Boot may have put something else there, and what faults has not been done.
            access.writes.iter_mut().for_each(|(_, written)| *written = Written::Maybe);
        }
        if node.steps[2].is_some() {
            // What handles a fault may write registers (arch/x86/mm/extable.c).
            all_registers().for_each(|register| access.write(register, false));
        }
        Ok(access)
    }

    fn registers(
        &self,
        access: &mut Access,
        factory: &mut InstructionInfoFactory,
        instruction: &iced_x86::Instruction,
        surely: bool,
    ) -> Result<(), Why> {
        for used in factory.info(instruction).used_registers() {
            let register = used.register();
            if register.is_vector_register() || register.is_st() || register.is_mm() || register.is_k() {
                return Err(Why::Vectors(self.node.at));
            }
            let full = number(register.full_register()).map(|at| at as u8).filter(|at| *at != SP);
            let Some(location) = full.map(Location::Register) else { continue };
            let both = [location, Location::SecondResult];
            let locations = if location == Location::Register(DX) { &both[..] } else { &both[..1] };
            if reads(used.access()) {
                access.reads.extend(locations);
            }
            if let Some(all) = writes(used.access()) {
                // A half of a register leaves the other half; four bytes clear the rest (Intel SDM vol. 1, 3.4.1.1).
                locations.iter().for_each(|at| access.write(*at, surely && all && register.size() >= 4));
            }
        }
        if instruction.rflags_read() != 0 {
            access.reads.insert(Location::Flags);
        }
        if instruction.rflags_modified() != 0 {
            access.write(Location::Flags, surely && instruction.rflags_modified() & STATUS == STATUS);
        }
        Ok(())
    }

    /// What a call reads and writes.
    fn call(&self, access: &mut Access, name: Option<&str>) {
        access.reads.extend((self.depth..(self.depth + STACK_ARGUMENTS).min(0)).map(Location::Stack));
        access.writes.clear();
        if !is_ordinary(self.graph, self.node) {
            access.reads.extend(all_registers());
            access.reads.insert(Location::SecondResult);
            SCRATCH.iter().for_each(|at| access.write(Location::Register(*at), false));
            access.write(Location::SecondResult, false);
            access.write(Location::Flags, false);
            return;
        }
        access.reads.extend(ARGUMENTS.map(Location::Register));
        // A thunk for an indirect call has the register in its name (arch/x86/lib/retpoline.S).
        let through = name.and_then(|name| name.strip_prefix("__x86_indirect_thunk_"));
        if let Some(register) = through.and_then(|name| Register::values().find(|known| spelled(*known) == name)) {
            access.reads.extend(number(register).map(|at| Location::Register(at as u8)));
        }
        for at in SCRATCH {
            let written = if at == AX { Written::Surely } else { Written::Undefined };
            access.writes.push((Location::Register(at), written));
        }
        access.write(Location::SecondResult, true);
        access.writes.push((Location::Flags, Written::Undefined));
    }

    /// What boot may put in the place of an instruction.
    fn replacement(
        &self,
        access: &mut Access,
        factory: &mut InstructionInfoFactory,
        instruction: &iced_x86::Instruction,
    ) -> Result<(), Why> {
        self.registers(access, factory, instruction, false)?;
        if instruction.flow_control() != iced_x86::FlowControl::Next {
            access.reads.extend(all_registers());
            SCRATCH.iter().for_each(|at| access.write(Location::Register(*at), false));
            return Ok(());
        }
        for used in factory.info(instruction).used_memory() {
            let is_held = |register: Register| number(register).is_some_and(|at| self.held[at].is_some());
            if is_held(used.base()) || is_held(used.index()) {
                return Err(Why::Choice(self.node.at));
            }
            self.memory(access, used);
        }
        Ok(())
    }

    /// Notes an operand in memory.
    fn memory(&self, access: &mut Access, used: &UsedMemory) {
        let instruction = &self.node.instruction;
        let is_whole = used.memory_size() != MemorySize::Unknown
            && !instruction.is_string_instruction()
            && !is_bit_string(instruction);
        let is_plain = used.index() == Register::None && !matches!(used.segment(), Register::FS | Register::GS);
        let at = in_frame(&self.held, used.base(), used.displacement()).filter(|_| is_whole && is_plain);
        let Some(at) = at else {
            access.stores |= writes(used.access()).is_some();
            access.loads |= reads(used.access());
            // Where no register takes part, it is a place of the image or of a processor.
            let by_pointer =
                used.base() != Register::None && used.base() != Register::RIP || used.index() != Register::None;
            if self.escapes && by_pointer && !matches!(used.segment(), Register::FS | Register::GS) {
                self.shared(access, used);
            }
            return;
        };
        for byte in (at..).take(used.memory_size().size()) {
            if reads(used.access()) {
                access.reads.insert(Location::Stack(byte));
            }
            if let Some(surely) = writes(used.access()) {
                access.write(Location::Stack(byte), surely);
            }
        }
        // Nobody else knows where registers are saved.
        if self.escapes && !matches!(instruction.mnemonic(), Mnemonic::Push | Mnemonic::Pop) {
            access.stores |= writes(used.access()).is_some();
            self.shared(access, used);
        }
    }

    fn shared(&self, access: &mut Access, used: &UsedMemory) {
        if reads(used.access()) {
            access.reads.insert(Location::Shared);
        }
        if writes(used.access()).is_some() {
            access.write(Location::Shared, false);
        }
    }
}

fn all_registers() -> impl Iterator<Item = Location> {
    (0..16).filter(|at| *at != SP).map(Location::Register)
}

fn spelled(register: Register) -> String {
    format!("{register:?}").to_lowercase()
}
