//! PTX text -> flat instruction list. Covers what NVRTC/clang emit for our kernels; anything unknown is a hard error.
use std::collections::HashMap;
#[derive(Debug, Clone)]
pub enum Arg {
    Reg(u32),
    Imm(u64),
    Vec(Vec<Arg>),
    Mem(Box<Arg>, i64),
    Mem2(Box<Arg>, Vec<Arg>),
    Sreg(&'static str, u8),
    Pair(u32, u32),
    NotReg(u32),
    Label(u32),
    Sink,
}
#[derive(Debug, Clone)]
pub struct Ins {
    pub op: crate::decode::Op,
    pub args: Vec<Arg>,
    pub guard: Option<(u32, bool)>,
    pub text: String,
}
#[derive(Debug, Default)]
pub struct Kernel {
    pub name: String,
    pub param_bytes: usize,
    pub code: Vec<Ins>,
    pub nregs: u32,
    pub smem_static: usize,
    pub local_bytes: usize,
    pub wgmma: bool,
    /// Whether it waits for the launches before it: then it writes nothing before that.
    pub waits: bool,
    /// Blocks that a multiprocessor must have room for: they share its registers.
    pub resident: u32,
}
/// The kernels of a file, and its arrays in global memory, one behind the other from `GLW` on.
#[derive(Debug, Default)]
pub struct File {
    pub kernels: Vec<Kernel>,
    pub globals: Vec<u8>,
}
pub fn ty_size(t: &str) -> usize {
    match t {
        "pred" => 1,
        _ => t[1..].trim_end_matches("x2").parse::<usize>().unwrap() / 8 * if t.ends_with("x2") { 2 } else { 1 },
    }
}
fn strip(src: &str) -> String {
    src.lines()
        .map(|l| l.split("//").next().unwrap())
        .filter(|l| {
            let t = l.trim();
            !(t.starts_with(".loc") || t.starts_with(".file"))
        })
        .collect::<Vec<_>>()
        .join("\n")
}
pub fn parse(src: &str) -> File {
    let s = strip(src);
    let (mut out, mut globals, mut names) = (vec![], vec![], HashMap::new());
    let mut gsh: Vec<(String, usize, usize)> = vec![]; // module-scope shared: name, align, bytes (0 = extern)
    let b = s.as_str();
    let mut i = 0;
    while i < b.len() {
        let rest = &b[i..];
        let t = rest.trim_start();
        i += rest.len() - t.len();
        if t.is_empty() {
            break;
        }
        let line = t.lines().next().unwrap();
        if t.starts_with(".version") {
            i += line.len();
            continue;
        }
        if t.starts_with(".target") {
            i += line.len();
            continue;
        }
        if t.starts_with(".address_size") {
            i += line.len();
            continue;
        }
        if t.starts_with(".visible .entry") || t.starts_with(".entry") {
            let ob = t.find('{').unwrap();
            let mut d = 0;
            let mut e = ob;
            for (k, c) in t[ob..].char_indices() {
                if c == '{' {
                    d += 1
                }
                if c == '}' {
                    d -= 1;
                    if d == 0 {
                        e = ob + k;
                        break;
                    }
                }
            }
            out.push(kernel(&t[..ob], &t[ob + 1..e], &gsh, &names));
            i += e + 1;
            continue;
        }
        let semi = t.find(';').unwrap();
        let st = &t[..semi];
        i += semi + 1;
        if st.contains(".shared") {
            gsh.push(decl(st))
        } else if st.starts_with(".global") {
            let (head, values) = st.split_once('=').unwrap_or((st, ""));
            let (name, align, bytes) = decl(head.trim());
            globals.resize(globals.len().div_ceil(align) * align, 0);
            names.insert(name, crate::memory::GLW + globals.len() as u64);
            let end = globals.len() + bytes;
            let values = values.trim().trim_matches(['{', '}']).split(',').filter(|v| !v.trim().is_empty());
            globals.extend(values.map(|v| v.trim().parse::<u8>().expect("an array of bytes")));
            globals.resize(end, 0);
        } else {
            panic!("module statement not supported: {st}")
        }
    }
    File { kernels: out, globals }
}
/// `.extern .shared .align 16 .b8 name[N]` -> (name, align, bytes)
fn decl(st: &str) -> (String, usize, usize) {
    let w: Vec<&str> = st.split_whitespace().collect();
    let mut al = 1;
    let mut sz = 1;
    for (k, x) in w.iter().enumerate() {
        if *x == ".align" {
            al = w[k + 1].parse().unwrap()
        } else if let Some(t) = x.strip_prefix('.')
            && matches!(t.as_bytes()[0], b'b' | b'u' | b's' | b'f')
            && t[1..].parse::<usize>().is_ok()
        {
            sz = ty_size(t)
        }
    }
    let n = w.last().unwrap();
    let (name, cnt) = match n.find('[') {
        Some(p) => (&n[..p], n[p + 1..].trim_end_matches(']').parse().unwrap_or(0)),
        None => (*n, 1),
    };
    (name.into(), al.max(sz), sz * cnt)
}
struct Scope {
    regs: HashMap<String, u32>,
    labels: HashMap<String, u32>,
}
fn kernel(head: &str, body: &str, gsh: &[(String, usize, usize)], globals: &HashMap<String, u64>) -> Kernel {
    let mut k = Kernel::default();
    let resident = head.split_once(".minnctapersm").and_then(|(_, n)| n.split_whitespace().next()?.parse().ok());
    k.resident = resident.unwrap_or(1);
    let op = head.find('(').unwrap();
    k.name = head[..op].split_whitespace().last().unwrap().into();
    let mut syms = globals.clone();
    for p in head[op + 1..head.find(')').unwrap()].split(',').filter(|p| !p.trim().is_empty()) {
        let (n, al, sz) = decl(p.trim());
        let off = k.param_bytes.div_ceil(al) * al;
        k.param_bytes = off + sz;
        syms.insert(n, off as u64);
    }
    let place = |k: &mut Kernel, d: &(String, usize, usize)| {
        let o = k.smem_static.div_ceil(d.1) * d.1;
        k.smem_static = o + d.2;
        o as u64
    };
    for d in gsh.iter().filter(|d| d.2 > 0) {
        let o = place(&mut k, d);
        syms.insert(d.0.clone(), o);
    }
    // pass 1: statements with scope ids
    let mut scopes = vec![Scope { regs: HashMap::new(), labels: HashMap::new() }];
    let mut parent = vec![usize::MAX];
    let mut cur = 0usize;
    let mut pend: Vec<(usize, String)> = vec![];
    let mut it = body;
    let mut dyn_align = 1;
    loop {
        it = it.trim_start();
        if it.is_empty() {
            break;
        }
        if it.starts_with('{') {
            scopes.push(Scope { regs: HashMap::new(), labels: HashMap::new() });
            parent.push(cur);
            cur = scopes.len() - 1;
            it = &it[1..];
            continue;
        }
        if it.starts_with('}') {
            cur = parent[cur];
            it = &it[1..];
            continue;
        }
        let idl = it.find(|c: char| !(c.is_alphanumeric() || "$_%".contains(c))).unwrap_or(it.len());
        if idl > 0 && it[idl..].starts_with(':') && !it[idl..].starts_with("::") {
            scopes[cur].labels.insert(it[..idl].into(), pend.len() as u32);
            it = &it[idl + 1..];
            continue;
        }
        let e = it.find(';').unwrap();
        let st = it[..e].split_whitespace().collect::<Vec<_>>().join(" ");
        it = &it[e + 1..];
        if st.starts_with(".reg") {
            for r in st.splitn(3, ' ').nth(2).unwrap().split(',') {
                let r = r.trim();
                match r.find('<') {
                    Some(p) => {
                        for n in 0..r[p + 1..].trim_end_matches('>').parse::<u32>().unwrap() {
                            scopes[cur].regs.insert(format!("{}{n}", &r[..p]), k.nregs);
                            k.nregs += 1;
                        }
                    }
                    None => {
                        scopes[cur].regs.insert(r.into(), k.nregs);
                        k.nregs += 1;
                    }
                }
            }
        } else if st.starts_with(".shared") {
            let d = decl(&st);
            let o = place(&mut k, &d);
            syms.insert(d.0, o);
        } else if st.starts_with(".local") {
            let d = decl(&st);
            let o = k.local_bytes.div_ceil(d.1) * d.1;
            k.local_bytes = o + d.2;
            syms.insert(d.0, o as u64);
        } else if st.starts_with(".pragma") {
        } else {
            pend.push((cur, st));
        }
    }
    for d in gsh.iter().filter(|d| d.2 == 0) {
        dyn_align = dyn_align.max(d.1);
        let o = k.smem_static.div_ceil(dyn_align) * dyn_align;
        k.smem_static = o;
        syms.insert(d.0.clone(), o as u64);
    }
    let find = |mut sc: usize, f: &dyn Fn(&Scope) -> Option<u32>| loop {
        if let Some(x) = f(&scopes[sc]) {
            return Some(x);
        }
        if parent[sc] == usize::MAX {
            return None;
        }
        sc = parent[sc];
    };
    for (sc, st) in &pend {
        let (mut s, mut guard) = (st.as_str(), None);
        if let Some(g) = s.strip_prefix('@') {
            let (p, r) = g.split_once(' ').unwrap();
            let neg = p.starts_with('!');
            guard = Some((find(*sc, &|x| x.regs.get(p.trim_start_matches('!')).copied()).unwrap(), !neg));
            s = r.trim();
        }
        let (opc, rest) = s.split_once(' ').unwrap_or((s, ""));
        let reg = |n: &str| find(*sc, &|x| x.regs.get(n).copied());
        let args =
            split(rest).iter().map(|a| arg(a, &reg, &|n| find(*sc, &|x| x.labels.get(n).copied()), &syms)).collect();
        k.code.push(Ins { op: crate::decode::decode(opc), args, guard, text: st.clone() });
    }
    k.waits = k.code.iter().any(|i| i.op.k == crate::decode::K::Waits);
    k.wgmma = k.code.iter().any(|i| i.op.k == crate::decode::K::Wgmma);
    k
}
fn split(s: &str) -> Vec<String> {
    let (mut d, mut o, mut c) = (0, vec![], String::new());
    for ch in s.chars() {
        match ch {
            '[' | '{' => {
                d += 1;
                c.push(ch)
            }
            ']' | '}' => {
                d -= 1;
                c.push(ch)
            }
            ',' if d == 0 => {
                o.push(c.trim().into());
                c.clear()
            }
            _ => c.push(ch),
        }
    }
    if !c.trim().is_empty() {
        o.push(c.trim().into())
    }
    o
}
fn imm(a: &str) -> Option<u64> {
    if let Some(h) = a.strip_prefix("0f") {
        return u64::from_str_radix(h, 16).ok();
    }
    if let Some(h) = a.strip_prefix("0d") {
        return u64::from_str_radix(h, 16).ok();
    }
    let (neg, b) = match a.strip_prefix('-') {
        Some(b) => (true, b),
        None => (false, a),
    };
    let b = b.trim_end_matches('U');
    let v =
        if let Some(h) = b.strip_prefix("0x") { u64::from_str_radix(h, 16).ok()? } else { b.parse::<u64>().ok()? };
    Some(if neg { v.wrapping_neg() } else { v })
}
fn arg(
    a: &str,
    reg: &dyn Fn(&str) -> Option<u32>,
    lab: &dyn Fn(&str) -> Option<u32>,
    syms: &HashMap<String, u64>,
) -> Arg {
    if a == "_" {
        return Arg::Sink;
    }
    if let Some(r) = reg(a) {
        return Arg::Reg(r);
    }
    if let Some(v) = imm(a) {
        return Arg::Imm(v);
    }
    if a.starts_with('{') {
        return Arg::Vec(split(&a[1..a.len() - 1]).iter().map(|x| arg(x, reg, lab, syms)).collect());
    }
    if a.starts_with('[') {
        let p = split(&a[1..a.len() - 1]);
        if p.len() == 2
            && let Arg::Vec(v) = arg(&p[1], reg, lab, syms)
        {
            return Arg::Mem2(Box::new(arg(&p[0], reg, lab, syms)), v);
        }
        let (b, o) = match p[0].find('+') {
            Some(x) => (p[0][..x].trim(), p[0][x + 1..].trim().parse().unwrap()),
            None => (p[0].as_str(), 0i64),
        };
        return Arg::Mem(Box::new(arg(b, reg, lab, syms)), o);
    }
    if let Some((x, y)) = a.split_once('|') {
        return Arg::Pair(reg(x.trim()).unwrap(), reg(y.trim()).unwrap());
    }
    if let Some(r) = a.strip_prefix('!') {
        return Arg::NotReg(reg(r).unwrap());
    }
    for s in ["tid", "ntid", "ctaid", "nctaid", "laneid", "warpid", "cluster_ctarank"] {
        if let Some(r) = a.strip_prefix('%') {
            if r == s {
                return Arg::Sreg(s, 0);
            }
            if let Some(ax) = r.strip_prefix(s).and_then(|r| r.strip_prefix('.')) {
                return Arg::Sreg(s, ax.as_bytes()[0] - b'x');
            }
        }
    }
    if let Some(&v) = syms.get(a) {
        return Arg::Imm(v);
    }
    if let Some(l) = lab(a) {
        return Arg::Label(l);
    }
    panic!("operand not understood: {a}")
}
