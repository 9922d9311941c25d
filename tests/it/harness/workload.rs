//! Writes of every kind that the server knows, in four databases.
//!
//! What not every server knows has a mark in front: `7.0| LMPOP …`. [`Known`] lists the marks.

use super::random::Random;
use super::{Client, Value};

/// What a server knows beyond Redis 6.2.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// `7.0|`: functions, LMPOP, EXPIRE with a condition.
    since_7_0: bool,
    /// `fields|`: fields of hashes that expire, and what came with them (Redis 8.0, Valkey 9).
    fields: bool,
    /// `valkey-8.1|`: SET with IFEQ.
    valkey_8_1: bool,
    /// Nothing that a seed has to rewrite: relative TTLs before 7.0, HPERSIST of Redis.
    only_verbatim: bool,
}

impl Known {
    /// Asks.
    #[track_caller]
    pub fn by(client: &mut Client) -> Self {
        let version = client.version();
        Self {
            since_7_0: version.speaks >= (7, 0),
            fields: client.knows("HSETEX"),
            valkey_8_1: version.valkey.is_some_and(|valkey| valkey >= (8, 1)),
            only_verbatim: false,
        }
    }

    /// Whether TTLs go without: they would be relative in the replication stream.
    fn without_ttls(&self) -> bool {
        self.only_verbatim && !self.since_7_0
    }

    /// The line without its mark, where the server knows it.
    #[track_caller]
    pub fn line<'a>(&self, line: &'a str) -> Option<&'a str> {
        let Some((mark, rest)) = line.split_once("| ") else {
            return self.plain(line);
        };
        let known = match mark {
            "7.0" => self.since_7_0,
            "fields" => self.fields,
            "valkey-8.1" => self.valkey_8_1,
            other => panic!("no such mark: {other}"),
        };
        let rewritten = self.only_verbatim && rest.contains("PERSIST ");
        (known && !rewritten).then_some(rest)
    }

    /// A line without a mark as it is written: TTLs are left out where they have to go without.
    fn plain<'a>(&self, line: &'a str) -> Option<&'a str> {
        if !self.without_ttls() {
            return Some(line);
        }
        let command = line.split(' ').next().unwrap_or_default();
        if ["EXPIRE", "PEXPIRE", "SETEX", "PSETEX", "GETEX"].contains(&command) {
            return None;
        }
        let end = line.find(" EX ").or_else(|| line.find(" PX "));
        Some(&line[..end.unwrap_or(line.len())])
    }
}

/// Databases written to.
pub const DATABASES: u32 = 4;
/// Far enough in the future that no key expires while a test runs: 2100-01-01, in seconds.
const YEAR_2100: u64 = 4_102_444_800;

/// Writes every type and every kind of command. Rounds differ in their values and act on what earlier rounds left, so
/// that one round can be in the snapshot and the next in the replication stream.
#[track_caller]
pub fn write_everything(client: &mut Client, round: u64) {
    let known = Known::by(client);
    write_known(client, known, round);
}

/// The same without what a seed has to rewrite: it goes out byte for byte under the archived id then.
#[track_caller]
pub fn write_verbatim(client: &mut Client, round: u64) {
    let known = Known {
        only_verbatim: true,
        ..Known::by(client)
    };
    write_known(client, known, round);
}

#[track_caller]
fn write_known(client: &mut Client, known: Known, round: u64) {
    let mut random = Random::fixed(round);
    for database in 0..DATABASES {
        client.ok(&["SELECT", &database.to_string()]);
        strings(client, known, round, &mut random);
        lists(client, known, round);
        sets(client, known, round);
        hashes(client, known, round, &mut random);
        sorted_sets(client, known, round);
        streams(client, known, round);
        derived_types(client, known, round);
        expiries(client, known, round);
        transactions_and_scripts(client, known, round, database);
        removals(client, known, round);
    }
    across_databases(client, known, round);
    client.line("SELECT 0");
    if known.since_7_0 {
        functions(client, round);
    }
}

/// Words with `{r}` for the round, and perhaps a mark in front.
#[track_caller]
fn lines(client: &mut Client, known: Known, round: u64, text: &str) {
    let text = text.replace("{r}", &round.to_string());
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(line) = known.line(line) {
            client.line(line);
        }
    }
}

fn strings(client: &mut Client, known: Known, round: u64, random: &mut Random) {
    lines(
        client,
        known,
        round,
        "SET string:int:{r} 12{r}
         SET string:negative -9223372036854775807
         SET string:embstr:{r} short-{r}
         SET string:counter 5
         INCRBY string:counter {r}
         DECR string:counter
         INCRBYFLOAT string:float 1.25{r}
         APPEND string:appended :{r}
         SETRANGE string:padded 300 end{r}
         MSET string:m1 {r} string:m2 b{r}
         SETNX string:nx {r}
         GETSET string:m1 swapped{r}
         valkey-8.1| SET string:m1 swapped-if-{r} IFEQ swapped{r}
         SET string:empty-source x
         SETRANGE string:empty-source 0 {r}",
    );
    client.ok(&["SET", "string:empty", ""]);
    let raw = "raw ".repeat(200) + &round.to_string();
    client.ok(&["SET", &format!("string:raw:{round}"), &raw]);
    let every_byte: Vec<u8> = (0..=255).collect();
    let mut binary_name = b"string:\0\r\n\xff:".to_vec();
    binary_name.extend_from_slice(round.to_string().as_bytes());
    client.ok(&[b"SET".as_slice(), &binary_name, &every_byte]);
    let big = random.bytes(1 << 20);
    let name = format!("string:1MB:{round}");
    client.ok(&[b"SET".as_slice(), name.as_bytes(), &big]);
}

fn lists(client: &mut Client, known: Known, round: u64) {
    lines(
        client,
        known,
        round,
        "RPUSH list:small a b c {r}
         LPUSH list:small front{r}
         LSET list:small 1 set{r}
         LINSERT list:small BEFORE c before{r}
         LREM list:small 1 b
         RPUSH list:source 1 2 3 4 5
         LMOVE list:source list:moved LEFT RIGHT
         RPOPLPUSH list:source list:moved
         7.0| LMPOP 1 list:source LEFT COUNT 2
         RPOP list:source
         RPUSH list:popped 1 2 3
         BLPOP list:popped 1",
    );
    let mut push = vec!["RPUSH".to_owned(), "list:big".to_owned()];
    push.extend((0..3000).map(|index| format!("item {round} {index}")));
    client.ok(&push);
    client.line("LTRIM list:big 10 5000");
}

fn sets(client: &mut Client, known: Known, round: u64) {
    lines(
        client,
        known,
        round,
        "SADD set:intset 1 2 3 -5 70000 {r}
         SADD set:listpack a b 1 {r}
         SREM set:listpack b
         SMOVE set:listpack set:other a
         SUNIONSTORE set:union set:intset set:listpack
         SDIFFSTORE set:difference set:union set:intset
         SINTERSTORE set:intersection set:union set:intset
         SPOP set:union
         SPOP set:union 2",
    );
    let mut add = vec!["SADD".to_owned(), "set:hashtable".to_owned()];
    add.extend((0..1000).map(|index| format!("member {round} {index}")));
    client.ok(&add);
    client.line("SPOP set:hashtable 17");
}

/// Without HINCRBYFLOAT on a field that expires: Redis 8.0.2 replicates it as HSET, and an ordinary replica of its own
/// loses the time of expiry (8.0.6 sends HSETEX KEEPTTL).
fn hashes(client: &mut Client, known: Known, round: u64, random: &mut Random) {
    lines(
        client,
        known,
        round,
        "HSET hash:listpack f1 {r} f2 two f{r} x
         HINCRBY hash:listpack count 3
         HINCRBYFLOAT hash:listpack float 0.5
         HSETNX hash:listpack once {r}
         HDEL hash:listpack f2
         fields| HSET hash:fields:{r} ex a px b exat c ex-past d persisted e written f counted 1 deleted g bare h
         fields| HEXPIRE hash:fields:{r} 90000 FIELDS 3 ex persisted written
         fields| HPEXPIRE hash:fields:{r} 90000123 FIELDS 2 px counted
         fields| HEXPIREAT hash:fields:{r} 41024448{r}0 FIELDS 1 exat
         fields| HEXPIRE hash:fields:{r} 80000 LT FIELDS 1 ex
         fields| HPERSIST hash:fields:{r} FIELDS 1 persisted
         fields| HEXPIRE hash:fields:{r} 0 FIELDS 1 ex-past
         fields| HSET hash:fields:{r} written again
         fields| HINCRBY hash:fields:{r} counted 4
         fields| HSETEX hash:fields:{r} EX 70000 FIELDS 2 set-1 a set-2 {r}
         fields| HSETEX hash:fields:{r} KEEPTTL FIELDS 1 set-2 kept
         fields| HGETEX hash:fields:{r} PX 60000789 FIELDS 1 bare
         fields| HGETEX hash:fields:{r} PERSIST FIELDS 1 set-1
         fields| HGETDEL hash:fields:{r} FIELDS 1 deleted
         fields| HSETEX hash:fields EX 50000 FIELDS 1 of-round-{r} {r}
         fields| HSETEX hash:fields-only PXAT 41024448{r}0321 FIELDS 1 f {r}
         fields| COPY hash:fields:{r} hash:fields-copied REPLACE",
    );
    let mut set = vec![b"HSET".to_vec(), b"hash:hashtable".to_vec()];
    for index in 0..500 {
        set.push(format!("field {round} {index}").into_bytes());
        set.push(random.bytes(30));
    }
    client.ok(&set);
}

fn sorted_sets(client: &mut Client, known: Known, round: u64) {
    lines(
        client,
        known,
        round,
        "ZADD zset:listpack inf infinite -inf bottom 0 zero -0.0 minus-zero 1.5 half 3.141592653589793 pi {r} round
         ZADD zset:listpack 17976931348623157e292 huge 5e-324 tiny
         ZINCRBY zset:listpack 0.1 half
         ZREM zset:listpack zero
         ZADD zset:popped 1 a 2 b 3 c 4 d
         ZPOPMIN zset:popped
         BZPOPMAX zset:popped 1
         7.0| ZMPOP 1 zset:popped MIN COUNT 1
         ZUNIONSTORE zset:union 2 zset:listpack zset:popped WEIGHTS 2 0.5
         ZRANGESTORE zset:range zset:listpack 0 2
         ZREMRANGEBYRANK zset:range 0 0",
    );
    let mut add = vec!["ZADD".to_owned(), "zset:skiplist".to_owned()];
    for index in 0..400 {
        add.push(format!("{}.{index}", index * 7 + round));
        add.push(format!("member {round} {index}"));
    }
    client.ok(&add);
}

fn streams(client: &mut Client, known: Known, round: u64) {
    let first = client.ok(&["XADD", "stream:main", "*", "first", &round.to_string()]);
    for index in 0..250 {
        client.ok(&[
            "XADD",
            "stream:main",
            "*",
            "n",
            &index.to_string(),
            "lag",
            "7",
        ]);
    }
    client.ok(&["XDEL", "stream:main", &first.text()]);
    lines(
        client,
        known,
        round,
        "XTRIM stream:main MAXLEN ~ 300
         XGROUP CREATE stream:main group{r} 0
         XGROUP CREATE stream:main tail{r} $
         XGROUP CREATECONSUMER stream:main group{r} idle
         XREADGROUP GROUP group{r} alice COUNT 5 STREAMS stream:main >
         XREADGROUP GROUP group{r} bob COUNT 3 NOACK STREAMS stream:main >
         XREADGROUP GROUP group{r} carol COUNT 4 STREAMS stream:main >
         XAUTOCLAIM stream:main group{r} dave 0 0 COUNT 2
         XGROUP CREATE stream:empty group{r} $ MKSTREAM
         XADD stream:ids {r}000-1 a b
         7.0| XADD stream:ids {r}000-* c d
         XSETID stream:ids {r}000-500
         XDEL stream:ids {r}000-2
         XGROUP CREATE stream:main gone{r} 0
         XGROUP DESTROY stream:main gone{r}
         XGROUP CREATECONSUMER stream:main group{r} left
         XGROUP DELCONSUMER stream:main group{r} left
         XGROUP SETID stream:main tail{r} 0
         XADD stream:read * a 1
         XADD stream:read * a 2
         XADD stream:read * a 3
         XGROUP CREATE stream:read group{r} 0
         XREADGROUP GROUP group{r} alice COUNT 1 STREAMS stream:read >
         XREADGROUP GROUP group{r} alice COUNT 1 STREAMS stream:read >",
    );
    let group = format!("group{round}");
    let pending = client.ok(&["XPENDING", "stream:main", &group, "-", "+", "2", "carol"]);
    for entry in pending.array() {
        let id = entry.array().swap_remove(0).text();
        client.ok(&["XCLAIM", "stream:main", &group, "bob", "0", &id]);
        client.ok(&["XACK", "stream:main", &group, &id]);
    }
    let _ = client.ok(&["XDEL", "stream:main", "1-1"]);
}

fn derived_types(client: &mut Client, known: Known, round: u64) {
    let mut add = vec!["PFADD".to_owned(), "hll:dense".to_owned()];
    add.extend((0..2000).map(|index| format!("{round}-{index}")));
    client.ok(&add);
    lines(
        client,
        known,
        round,
        "PFADD hll:sparse a b c {r}
         PFMERGE hll:merged hll:sparse hll:dense
         GEOADD geo:places 13.361389 38.115556 Palermo 15.087269 37.502669 Catania 2.35 48.85 p{r}
         GEOSEARCHSTORE geo:near geo:places FROMLONLAT 15 37 BYRADIUS 300 km ASC
         SETBIT bits:flags 10{r} 1
         BITFIELD bits:fields SET u8 0 200 INCRBY i5 100 {r} OVERFLOW SAT SET i16 #3 -300
         BITOP XOR bits:xor bits:flags bits:fields",
    );
}

fn expiries(client: &mut Client, known: Known, round: u64) {
    lines(
        client,
        known,
        round,
        "SET ttl:ex:{r} v EX 90000
         SET ttl:px:{r} v PX 90000123
         SETEX ttl:setex:{r} 80000 v
         PSETEX ttl:psetex:{r} 80000456 v
         SET ttl:expire:{r} v
         EXPIRE ttl:expire:{r} 70000
         PEXPIRE ttl:expire:{r} 70000789
         7.0| EXPIRE ttl:expire:{r} 60000 LT
         RPUSH ttl:list a
         EXPIRE ttl:list 55555
         SET ttl:persisted v EX 5000
         PERSIST ttl:persisted
         SET ttl:kept v EX 77777
         SET ttl:kept v{r} KEEPTTL
         SET ttl:getex v
         GETEX ttl:getex EX 66666
         SET ttl:past v
         EXPIRE ttl:past -1",
    );
    let at = (YEAR_2100 + round).to_string();
    let at_milliseconds = format!("{at}321");
    client.ok(&["SET", &format!("ttl:exat:{round}"), "v", "EXAT", &at]);
    client.line("SADD ttl:set a b");
    client.ok(&["PEXPIREAT", "ttl:set", &at_milliseconds]);
    client.line("HSET ttl:hash a b");
    client.ok(&["EXPIREAT", "ttl:hash", &at]);
}

fn transactions_and_scripts(client: &mut Client, known: Known, round: u64, database: u32) {
    let other = (database + 1) % DATABASES;
    transaction(
        client,
        &[
            &format!("SET multi:a {round}"),
            "INCR multi:b",
            "RPUSH multi:c x y",
            &format!("SELECT {other}"),
            &format!("APPEND multi:from:{database} {round},"),
            &format!("SELECT {database}"),
            "INCR multi:b",
        ],
    );
    transaction(client, &["INCR multi:single"]);
    transaction(client, &["GET multi:single"]);
    // A transaction that ends in another database than it began in.
    transaction(
        client,
        &["INCR multi:d", &format!("SELECT {other}"), "INCR multi:e"],
    );
    client.ok(&["SELECT", &database.to_string()]);
    let with_ttl = if known.without_ttls() {
        ""
    } else {
        "redis.call('SET', KEYS[1] .. ':ttl', 'v', 'EX', 54321); "
    };
    let script = format!(
        "redis.call('SET', KEYS[1], ARGV[1]); redis.call('RPUSH', KEYS[2], ARGV[1], 'x'); {with_ttl}return 1"
    );
    let value = round.to_string();
    client.ok(&["EVAL", &script, "2", "script:string", "script:list", &value]);
    client.ok(&[
        "EVAL",
        "return redis.call('INCR', KEYS[1])",
        "1",
        "script:one",
    ]);
}

#[track_caller]
fn transaction(client: &mut Client, commands: &[&str]) {
    client.line("MULTI");
    for command in commands {
        assert_eq!(client.line(command).text(), "QUEUED");
    }
    for reply in client.line("EXEC").array() {
        assert!(!matches!(reply, Value::Error(_)), "{commands:?}: {reply:?}");
    }
}

fn removals(client: &mut Client, known: Known, round: u64) {
    lines(
        client,
        known,
        round,
        "MSET gone:1 a gone:2 b gone:3 c gone:4 d
         DEL gone:1 gone:2
         UNLINK gone:3
         GETDEL gone:4
         SET renamed:from:{r} v EX 43210
         RENAME renamed:from:{r} renamed:to
         SET renamed:nx:{r} v
         RENAMENX renamed:nx:{r} renamed:nx-to:{r}
         COPY list:small copy:list REPLACE
         SET copy:ttl v EX 32100
         COPY copy:ttl copy:ttl-too REPLACE
         RPUSH sort:source 3 1 2
         SORT sort:source STORE sort:sorted
         SET dump:source dumped{r} EX 21000",
    );
    let dumped = client.line("DUMP dump:source").bytes();
    let ttl: &[u8] = if known.without_ttls() {
        b"0"
    } else {
        b"22222000"
    };
    let restore = [
        b"RESTORE".as_slice(),
        b"dump:restored",
        ttl,
        &dumped,
        b"REPLACE",
    ];
    client.ok(&restore);
}

fn across_databases(client: &mut Client, known: Known, round: u64) {
    lines(
        client,
        known,
        round,
        "SELECT 0
         SET move:{r} v EX 12345
         MOVE move:{r} 1
         COPY hash:listpack copy:across DB 3 REPLACE
         SELECT 2
         SET swap:before {r}
         SWAPDB 2 3
         SET swap:after {r}
         SELECT 9
         MSET flushed:a 1 flushed:b 2
         FLUSHDB
         SELECT 15
         SET last-database {r}",
    );
}

fn functions(client: &mut Client, round: u64) {
    let library = |name: &str| {
        format!(
            "#!lua name={name}\nredis.register_function('{name}_set', function(keys, args) \
             return redis.call('SET', keys[1], args[1] .. '{round}') end)"
        )
    };
    client.ok(&["FUNCTION", "LOAD", "REPLACE", &library("shared")]);
    client.ok(&["FUNCTION", "LOAD", &library(&format!("round{round}"))]);
    client.ok(&["FUNCTION", "LOAD", &library("deleted")]);
    client.line("FUNCTION DELETE deleted");
    client.line("FCALL shared_set 1 function:key value");
}

/// Random writes on few keys, so that they meet: types change under one name, keys move between databases, and order
/// matters. Replies may be errors (a wrong type, a command that this server does not know); those write nothing.
pub fn write_at_random(client: &mut Client, random: &mut Random, count: u64) {
    for _ in 0..count {
        let name = format!("random:{}", random.below(40));
        let other = format!("random:{}", random.below(40));
        let value = random.below(1000).to_string();
        let database = random.below(u64::from(DATABASES)).to_string();
        let command: Vec<&str> = match random.below(26) {
            0 | 1 => vec!["SELECT", &database],
            2 => vec!["SET", &name, &value],
            3 => vec!["APPEND", &name, &value],
            4 => vec!["INCRBY", &name, &value],
            5 => vec!["RPUSH", &name, &value, &other],
            6 => vec!["LPOP", &name],
            7 => vec!["LMOVE", &name, &other, "LEFT", "RIGHT"],
            8 => vec!["SADD", &name, &value, &other],
            9 => vec!["SPOP", &name],
            10 => vec!["HSET", &name, &value, &other],
            11 => vec!["HDEL", &name, &value],
            12 => vec!["ZADD", &name, &value, &other],
            13 => vec!["ZPOPMAX", &name],
            14 => vec!["XADD", &name, "MAXLEN", "~", "50", "*", &value, &other],
            15 => vec!["DEL", &name],
            16 => vec!["RENAME", &name, &other],
            17 => vec!["COPY", &name, &other, "DB", &database],
            18 => vec!["MOVE", &name, &database],
            19 => vec!["EXPIRE", &name, "86400"],
            20 => vec!["PERSIST", &name],
            21 => vec!["SINTERSTORE", &name, &other, &name],
            22 => vec!["SETRANGE", &name, &value, &value],
            23 => vec!["HEXPIRE", &name, "86400", "FIELDS", "1", &value],
            24 => vec!["HPERSIST", &name, "FIELDS", "1", &value],
            _ => vec!["MULTI"],
        };
        if command == ["MULTI"] {
            let commands = [
                vec!["MULTI"],
                vec!["APPEND", &name, &value],
                vec!["SELECT", &database],
                vec!["INCR", &other],
                vec!["EXEC"],
            ];
            client.pipeline(&commands).unwrap();
        } else {
            client.command(&command).unwrap();
        }
    }
}
