#!lua name=tollkeeper
-- What pools and token buckets do, atomically, inside Redis or Valkey. See docs/adr (two-level escrow) and README.md here.
--
-- Every argument is text, every reply a flat list of texts whose first element is OK or ERR. An ERR reply changed
-- nothing (but a pool whose counters are used up is closed by it). Clients call with retries switched off:
-- what may be repeated is the protocol's decision, not a library's.
-- Notices are published before anything is written, so that a refused publish leaves nothing half done.
-- All keys and the channel of one call share a hash tag.

local VERSION = '6'
local UNITS_MAX = 9007199254740991 -- 2^53 - 1: Lua numbers are doubles, whole numbers up to here are exact
local VALUES_MAX = 64 -- values in one call
local EXPIRE_MARGIN_S = 3600
local EXPIRE_AT_S_MAX = 253402300799 -- the end of the year 9999

-- Numbers ------------------------------------------------------------------------------------------------------------

-- Reads plain decimal digits; nil for anything else (signs, hex, exponents, blanks) and above 2^53 - 1.
local function units(text)
  if not text or #text > 16 or not string.match(text, '^%d+$') then return nil end
  local number = tonumber(text)
  if number > UNITS_MAX then return nil end
  return number
end

local function flag(text)
  if text == '0' or text == '1' then return tonumber(text) end
  return nil
end

local function holder_name(text)
  return text and #text == 32 and string.match(text, '^%x+$') ~= nil
end

local function text_of(number) return string.format('%.0f', number) end

-- Answers floor(a * b / c) and the rest, exactly, though a * b may pass 2^53; a quotient above 2^53 - 1 saturates there.
local function muldiv(a, b, c)
  local product = a * b
  if product <= UNITS_MAX then
    local quotient = math.floor(product / c)
    return quotient, product - quotient * c
  end
  local b_quotient = math.floor(b / c)
  local b_rest = b - b_quotient * c
  local quotient, rest = 0, 0
  for bit = 52, 0, -1 do
    quotient = quotient * 2
    if rest >= c - rest then rest, quotient = rest - (c - rest), quotient + 1 else rest = rest + rest end
    local value = 2 ^ bit
    if a >= value then
      a, quotient = a - value, quotient + b_quotient
      if rest >= c - b_rest then rest, quotient = rest - (c - b_rest), quotient + 1 else rest = rest + b_rest end
    end
    if quotient > UNITS_MAX then return UNITS_MAX, 0 end
  end
  return quotient, rest
end

local function redis_now_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- The name of the present replication history: random, and another one after every promotion and restart. Never run_id,
-- which a master that was demoted, resynchronised and promoted again keeps.
local FENCE_LABEL, FENCE_LENGTH = 'master_replid:', 40
local function fence()
  local text = redis.call('INFO', 'replication')
  local _, last = string.find(text, FENCE_LABEL, 1, true)
  return string.sub(text, last + 1, last + FENCE_LENGTH)
end

-- Refuses what is not there, of another generation, or of another history. Answers the asked fields, or nil and the reply.
local function live(key, generation, ...)
  local stored = redis.call('HMGET', key, 'generation', 'fence', ...)
  if not stored[1] then return nil, {'ERR', 'NO_POOL'} end
  if tonumber(stored[1]) ~= generation then return nil, {'ERR', 'GENERATION', stored[1]} end
  if stored[2] ~= fence() then return nil, {'ERR', 'FENCE'} end
  return stored
end

-- Pools --------------------------------------------------------------------------------------------------------------
-- pool: generation fence total granted returned seq final closed wanted amount_version expire_at
-- holders: one field per holder, request_seq:granted_cum:returned_cum:last_give:consumed_cum:over_cum
-- values: one field per distinct value of a unique meter: 1 = it has a unit, 0 = it was seen beyond the limit,
--   request_seq:generation:holder = it has the unit that this holder got by this request, and nobody else was told so:
--   the holder may take it back as long as that stands there. `fence` is the history in which the marks were written last,
--   `since` the first generation in it: an own mark of an older one may have been taken back in a suffix that was lost.
-- free = total - granted + returned. wanted = the smallest need refused since the last notice, 0 = none.

-- Opens one generation with what is in it; nil where it is open, or a later one is: then the number of that.
local function open_one(pool_key, holders_key, ask, history)
  local stored = redis.call('HGET', pool_key, 'generation')
  if stored and tonumber(stored) >= ask.generation then return stored end
  redis.call('DEL', pool_key, holders_key)
  redis.call('HSET', pool_key, 'generation', text_of(ask.generation), 'fence', history, 'total', text_of(ask.total),
    'granted', '0', 'returned', '0', 'seq', '0', 'final', ask.final, 'closed', '0', 'wanted', '0',
    'amount_version', text_of(ask.version), 'expire_at', ask.expire_at)
  redis.call('EXPIREAT', pool_key, ask.expire_at)
  return nil
end

-- pool_open  KEYS (pool holders)...  ARGV (generation expire_at_unix_s allotted_cum amount_version final)...
-- The last three may be left out where one pool is opened: it is empty then. Many pools in one call cost a third.
-- Sent at most once per generation: an unknown outcome means the next generation, never a retry, because a repeat after
-- a flush would forget what was granted. The expiry is hygiene only, and never nearer than an hour.
-- Answers OK, or ERR OLD_GENERATION stored; of many pools OK and one text for each, OK or OLD_GENERATION.
local function pool_open(keys, args)
  local count, width = #keys / 2, 5
  if count == 1 and #args == 2 then width = 2 end
  if count < 1 or count % 1 ~= 0 or #args ~= count * width then return {'ERR', 'RANGE'} end
  local earliest_s = math.floor(redis_now_us() / 1000000) + EXPIRE_MARGIN_S
  local asks = {}
  for i = 1, count do
    local at = (i - 1) * width
    local ask = {generation = units(args[at + 1]), total = 0, version = 0, final = 0}
    local expire_at_s = units(args[at + 2])
    if width == 5 then
      ask.total, ask.version, ask.final = units(args[at + 3]), units(args[at + 4]), flag(args[at + 5])
    end
    if not (ask.generation and expire_at_s and ask.total and ask.version and ask.final) then return {'ERR', 'RANGE'} end
    ask.expire_at = text_of(math.min(math.max(expire_at_s, earliest_s), EXPIRE_AT_S_MAX))
    asks[i] = ask
  end
  local history, replies = fence(), {'OK'}
  for i = 1, count do
    local newer = open_one(keys[2 * i - 1], keys[2 * i], asks[i], history)
    if count == 1 and newer then return {'ERR', 'OLD_GENERATION', newer} end
    if count > 1 then replies[i + 1] = newer and 'OLD_GENERATION' or 'OK' end
  end
  return replies
end

-- Whether so little is left that what lies unused with others is lacking.
local function is_scarce(free, total) return free <= math.floor((total - 1) / 10) end

-- pool_extend  KEYS pool  ARGV generation allotted_cum amount_version final channel
-- Cumulative: repeating and reordering change nothing. An older amount_version, or a smaller allotted_cum of the same
-- one, may raise the total but says nothing about final. SHORT is published when a final pool comes to have less than
-- a tenth left, by this or by a grant: whoever holds units that it does not use is to return them.
local function pool_extend(keys, args)
  local generation, allotted_cum, amount_version = units(args[1]), units(args[2]), units(args[3])
  local final = flag(args[4])
  if not (generation and allotted_cum and amount_version and final and args[5]) then return {'ERR', 'RANGE'} end
  local pool, refusal = live(keys[1], generation,
    'total', 'granted', 'returned', 'final', 'closed', 'wanted', 'amount_version')
  if not pool then return refusal end
  if pool[7] == '1' then return {'ERR', 'CLOSED'} end
  local free_before = tonumber(pool[3]) - tonumber(pool[4]) + tonumber(pool[5])
  local was_short = pool[6] == '1' and is_scarce(free_before, tonumber(pool[3]))
  local total, wanted, version = tonumber(pool[3]), tonumber(pool[8]), tonumber(pool[9])
  local was_final = tonumber(pool[6])
  local is_newest = amount_version > version or (amount_version == version and allotted_cum >= total)
  if not is_newest then final = was_final end
  total = math.max(total, allotted_cum)
  local free = total - tonumber(pool[4]) + tonumber(pool[5])
  local reopened = was_final == 1 and final == 0
  if final == 1 and not was_short and is_scarce(free, total) then redis.call('SPUBLISH', args[5], 'SHORT') end
  if reopened or (wanted > 0 and free >= wanted) then
    redis.call('SPUBLISH', args[5], 'UNITS')
    wanted = 0
  end
  redis.call('HSET', keys[1], 'total', text_of(total), 'final', final, 'wanted', text_of(wanted),
    'amount_version', text_of(math.max(version, amount_version)))
  return {'OK'}
end

-- pool_close  KEYS pool  ARGV generation channel
-- Final: nothing is granted or taken back after it. Answers what was never granted or came back; a repeat answers the same.
local function pool_close(keys, args)
  local generation = units(args[1])
  if not (generation and args[2]) then return {'ERR', 'RANGE'} end
  local pool, refusal = live(keys[1], generation, 'total', 'granted', 'returned', 'closed')
  if not pool then return refusal end
  if pool[6] ~= '1' then
    redis.call('SPUBLISH', args[2], 'CLOSED')
    redis.call('HSET', keys[1], 'closed', 1, 'wanted', 0)
  end
  return {'OK', text_of(tonumber(pool[3]) - tonumber(pool[4]) + tonumber(pool[5]))}
end

-- How much to give of `free`: nothing below need; ahead of need a share, and nothing while less than a tenth is free.
local function share_of(free, total, need, want, holders)
  if free < need then return 0 end
  if is_scarce(free, total) then return need end
  return math.max(need, math.min(want, math.floor(free / (2 * holders))))
end

local function read_holder(holders_key, holder)
  local stored = redis.call('HGET', holders_key, holder)
  if not stored then return {known = false, seq = 0, granted = 0, returned = 0, give = 0} end
  local seq, granted, returned, give = string.match(stored, '^(%d+):(%d+):(%d+):(%d+):')
  return {known = true, seq = tonumber(seq), granted = tonumber(granted), returned = tonumber(returned),
    give = tonumber(give)}
end

-- Notes a refusal of `need`, and tells the channel where what was refused before is now there. Answers the new wanted.
local function next_wanted(wanted, free, need, given, channel)
  if wanted > 0 and free >= wanted then
    redis.call('SPUBLISH', channel, 'UNITS')
    wanted = 0
  end
  if given == 0 and free < need and (wanted == 0 or need < wanted) then wanted = need end
  return wanted
end

-- Repeats a holder's last answer: what was given is as it was, where the pool stands is as it is.
local function grant_again(keys, pool, holder, need, channel)
  local free = pool.total - pool.granted + pool.returned
  local wanted = pool.closed and pool.wanted or next_wanted(pool.wanted, free, need, holder.give, channel)
  if wanted ~= pool.wanted then redis.call('HSET', keys[1], 'wanted', text_of(wanted)) end
  return {'OK', text_of(holder.give), text_of(holder.granted), text_of(pool.seq), text_of(free), pool.final,
    text_of(pool.total), text_of(redis.call('HLEN', keys[2]))}
end

local function grant_now(keys, name, pool, holder, ask, channel)
  pool.returned = pool.returned + (ask.returned_cum - holder.returned)
  local free = pool.total - pool.granted + pool.returned
  local known = redis.call('HLEN', keys[2])
  local holders = known + (holder.known and 0 or 1)
  local give = ask.give or share_of(free, pool.total, ask.need, ask.want, math.max(ask.holder_count, holders))
  if pool.granted + give > UNITS_MAX then
    -- The cumulative counters are used up: the next generation starts from 0.
    redis.call('HSET', keys[1], 'closed', 1, 'wanted', 0)
    return {'ERR', 'CLOSED'}
  end
  local was_scarce = is_scarce(free, pool.total)
  free = free - give
  if pool.final == '1' and not was_scarce and is_scarce(free, pool.total) then
    redis.call('SPUBLISH', channel, 'SHORT')
  end
  local wanted = next_wanted(pool.wanted, free, ask.need, ask.is_refused and 0 or give, channel)
  pool.granted, pool.seq, holder.granted = pool.granted + give, pool.seq + 1, holder.granted + give
  redis.call('HSET', keys[1], 'granted', text_of(pool.granted), 'returned', text_of(pool.returned),
    'seq', text_of(pool.seq), 'wanted', text_of(wanted))
  redis.call('HSET', keys[2], name, table.concat({text_of(ask.request_seq), text_of(holder.granted),
    text_of(ask.returned_cum), text_of(give), text_of(ask.consumed_cum), text_of(ask.over_cum)}, ':'))
  if known == 0 then redis.call('EXPIREAT', keys[2], pool.expire_at) end
  return {'OK', text_of(give), text_of(holder.granted), text_of(pool.seq), text_of(free), pool.final,
    text_of(pool.total), text_of(holders)}
end

-- The pool and what it knows of the holder that asks, where the request is the last one again (is_repeat) or the next;
-- else nil and the refusal.
local function seat_of(keys, generation, name, ask, witness_seq)
  local stored, refusal = live(keys[1], generation,
    'total', 'granted', 'returned', 'seq', 'final', 'closed', 'wanted', 'expire_at')
  if not stored then return nil, refusal end
  local pool = {fence = stored[2], total = tonumber(stored[3]), granted = tonumber(stored[4]), returned = tonumber(stored[5]),
    seq = tonumber(stored[6]), final = stored[7], closed = stored[8] == '1', wanted = tonumber(stored[9]),
    expire_at = stored[10]}
  if pool.seq < witness_seq then return nil, {'ERR', 'ROLLBACK', text_of(pool.seq)} end
  local holder = read_holder(keys[2], name)
  holder.is_repeat = holder.known and ask.request_seq == holder.seq
  if holder.is_repeat then return pool, holder end
  if pool.closed then return nil, {'ERR', 'CLOSED'} end
  if ask.request_seq ~= holder.seq + 1 then return nil, {'ERR', 'SEQ', text_of(holder.seq)} end
  if ask.returned_cum < holder.returned or ask.consumed_cum + ask.returned_cum > holder.granted then
    return nil, {'ERR', 'RETURN_RANGE'}
  end
  return pool, holder
end

-- lease_grant  KEYS pool holders
-- ARGV generation holder_hex request_seq need want returned_cum consumed_cum over_cum witness_seq holder_count channel
-- Gives at least need or nothing; takes back what returned_cum says beyond what it said before. request_seq equal to the
-- last one repeats that answer, the next one is new, any other is an error. want below need counts as need.
-- Answers OK give granted_cum pool_seq free final total holders.
local function lease_grant(keys, args)
  local generation, witness_seq = units(args[1]), units(args[9])
  local ask = {request_seq = units(args[3]), need = units(args[4]), want = units(args[5]), returned_cum = units(args[6]),
    consumed_cum = units(args[7]), over_cum = units(args[8]), holder_count = units(args[10])}
  if not (generation and holder_name(args[2]) and ask.request_seq and ask.request_seq > 0 and ask.need and ask.want
      and ask.returned_cum and ask.consumed_cum and ask.over_cum and witness_seq and ask.holder_count and args[11]) then
    return {'ERR', 'RANGE'}
  end
  local pool, holder = seat_of(keys, generation, args[2], ask, witness_seq)
  if not pool then return holder end
  if holder.is_repeat then return grant_again(keys, pool, holder, ask.need, args[11]) end
  return grant_now(keys, args[2], pool, holder, ask, args[11])
end

-- What stands at a value of which only the holder that marked it was told.
local function own_mark(request_seq, generation, holder)
  return text_of(request_seq) .. ':' .. text_of(generation) .. ':' .. holder
end

-- Reads what stands at values: nil where nothing does that counts. Second, what is to be written with the next marks.
local function read_marks(values_key, values, pool, generation)
  local stored = redis.call('HMGET', values_key, 'fence', 'since', unpack(values))
  local since, head = tonumber(stored[2] or '0'), {}
  if stored[1] ~= pool.fence then
    since, head = generation, {'fence', pool.fence, 'since', text_of(generation)}
  end
  local known = {}
  for i = 1, #values do
    local mark = stored[i + 2]
    local made_in = mark and string.match(mark, ':(%d+):')
    known[i] = mark and not (made_in and tonumber(made_in) < since) and mark or false
  end
  return known, head
end

-- What each value is told: N = it has a unit by this request, K = it had one, D = there is none for it, O and o = it has
-- none and is beyond the limit, now or since before. Answers these letters, the units that it takes, whether any was
-- refused, and the marks to set. Whoever is told K may count on it, so the mark is nobody's own any more.
local function judge_values(values, known, free, is_beyond_noted, own)
  local letters, now, give, is_refused = {}, {}, 0, false
  for i, value in ipairs(values) do
    local before = now[value] or known[i]
    if before == own then
      letters[i] = 'N'
    elseif before and before ~= '0' then
      letters[i] = 'K'
      if before ~= '1' then now[value] = '1' end
    elseif give < free then
      letters[i], give, now[value] = 'N', give + 1, own
    else
      is_refused = true
      letters[i] = is_beyond_noted and (before == '0' and 'o' or 'O') or 'D'
      if letters[i] == 'O' then now[value] = '0' end
    end
  end
  return table.concat(letters), give, is_refused, now
end

-- What a repeat may say of values: ? where the request that it repeats told nothing of them.
local function judge_values_again(known, own)
  local letters = {}
  for i, mark in ipairs(known) do letters[i] = mark == own and 'N' or mark == '1' and 'K' or '?' end
  return table.concat(letters)
end

-- Reads values and, marked by =, those on whose own marks admitted calls count; nil where one is no value.
local function read_values(args, first)
  local values, settled = {}, {}
  for i = first, #args do
    local sign, value = string.match(args[i], '^(=?)(.*)$')
    if not holder_name(value) then return nil end
    local list = sign == '=' and settled or values
    list[#list + 1] = value
  end
  if #values < 1 or #values > VALUES_MAX or #settled > VALUES_MAX then return nil end
  return values, settled
end

-- values_grant  KEYS pool holders values
-- ARGV generation holder_hex request_seq returned_cum consumed_cum over_cum witness_seq holder_count channel
--      notes_beyond value_hex... =value_hex...
-- A unit for each value that has none in this window yet, in their order, as long as there are any: the value is marked and
-- its unit granted at once, so that there are never more values with a unit than units granted. Repeats as lease_grant
-- does: a repeat marks nothing and says ? of a value that has no unit. With notes_beyond a final pool marks those beyond
-- it, so that each counts once. After = stand values that this holder marked before and on which it admitted calls: their
-- marks are not its own any more. Answers as lease_grant, with one letter per value after it.
local function values_grant(keys, args)
  local generation, witness_seq, notes_beyond = units(args[1]), units(args[7]), flag(args[10])
  local ask = {request_seq = units(args[3]), need = 1, want = 0, returned_cum = units(args[4]),
    consumed_cum = units(args[5]), over_cum = units(args[6]), holder_count = units(args[8])}
  local values, settled = read_values(args, 11)
  if not (generation and holder_name(args[2]) and ask.request_seq and ask.request_seq > 0 and ask.returned_cum
      and ask.consumed_cum and ask.over_cum and witness_seq and ask.holder_count and notes_beyond and values) then
    return {'ERR', 'RANGE'}
  end
  local pool, holder = seat_of(keys, generation, args[2], ask, witness_seq)
  if not pool then return holder end
  local known, head = read_marks(keys[3], values, pool, generation)
  local own = own_mark(ask.request_seq, generation, args[2])
  local reply, letters, marks
  if holder.is_repeat then
    letters, marks = judge_values_again(known, own), {}
    reply = grant_again(keys, pool, holder, 0, args[9])
  else
    local free = pool.total - pool.granted + pool.returned + ask.returned_cum - holder.returned
    local notes = notes_beyond == 1 and pool.final == '1'
    letters, ask.give, ask.is_refused, marks = judge_values(values, known, free, notes, own)
    if not ask.is_refused then ask.need = 0 end
    reply = grant_now(keys, args[2], pool, holder, ask, args[9])
  end
  if reply[1] ~= 'OK' then return reply end
  local ending = ':' .. text_of(generation) .. ':' .. args[2]
  for i, mark in ipairs(#settled > 0 and redis.call('HMGET', keys[3], unpack(settled)) or {}) do
    if mark and string.sub(mark, -#ending) == ending then marks[settled[i]] = '1' end
  end
  for value, mark in pairs(marks) do
    head[#head + 1] = value
    head[#head + 1] = mark
  end
  if next(marks) then
    redis.call('HSET', keys[3], unpack(head))
    redis.call('EXPIREAT', keys[3], pool.expire_at)
  end
  reply[#reply + 1] = letters
  return reply
end

-- values_return  KEYS pool holders values
-- ARGV generation holder_hex request_seq returned_cum consumed_cum over_cum witness_seq holder_count channel
--      (mark_seq value_hex)...
-- Takes marks back that this holder set by its request mark_seq of this generation and that no call came to count on: the
-- mark goes and its unit is free again, in one step. One that somebody else was told of stays, and so does its unit.
-- consumed_cum counts the units in question; each that comes back moves from it to the holder's cumulative return.
-- Repeats as lease_grant does. Answers as lease_grant, with the holder's cumulative return after it: what that is above
-- the first request's returned_cum came back.
local function values_return(keys, args)
  local generation, witness_seq = units(args[1]), units(args[7])
  local ask = {request_seq = units(args[3]), need = 0, want = 0, give = 0, returned_cum = units(args[4]),
    consumed_cum = units(args[5]), over_cum = units(args[6]), holder_count = units(args[8])}
  local count = (#args - 9) / 2
  if not (generation and holder_name(args[2]) and ask.request_seq and ask.request_seq > 0 and ask.returned_cum
      and ask.consumed_cum and ask.over_cum and witness_seq and ask.holder_count and count >= 1 and count % 1 == 0
      and count <= VALUES_MAX and count <= ask.consumed_cum) then
    return {'ERR', 'RANGE'}
  end
  local values, own, seen = {}, {}, {}
  for i = 1, count do
    local mark_seq, value = units(args[8 + 2 * i]), args[9 + 2 * i]
    if not (mark_seq and holder_name(value)) or seen[value] then return {'ERR', 'RANGE'} end
    values[i], own[i], seen[value] = value, own_mark(mark_seq, generation, args[2]), true
  end
  local pool, holder = seat_of(keys, generation, args[2], ask, witness_seq)
  if not pool then return holder end
  local reply
  if holder.is_repeat then
    reply = grant_again(keys, pool, holder, 0, args[9])
    reply[#reply + 1] = text_of(holder.returned)
    return reply
  end
  local gone = {}
  for i, mark in ipairs((read_marks(keys[3], values, pool, generation))) do
    if mark == own[i] then gone[#gone + 1] = values[i] end
  end
  ask.returned_cum, ask.consumed_cum = ask.returned_cum + #gone, ask.consumed_cum - #gone
  reply = grant_now(keys, args[2], pool, holder, ask, args[9])
  if reply[1] ~= 'OK' then return reply end
  if #gone > 0 then redis.call('HDEL', keys[3], unpack(gone)) end
  reply[#reply + 1] = text_of(ask.returned_cum)
  return reply
end

-- Witnesses ----------------------------------------------------------------------------------------------------------

-- witness_show  KEYS witness  ARGV timeline number value_hex
-- Keeps the newest witness of what Postgres had committed: by timeline, then by number. Answers OK timeline number value
-- of the one that was there before; 0 0 and an empty value where there was none.
local function witness_show(keys, args)
  local timeline, number = units(args[1]), units(args[2])
  if not (timeline and number and holder_name(args[3])) then return {'ERR', 'RANGE'} end
  local stored = redis.call('HMGET', keys[1], 'timeline', 'number', 'value')
  local known_timeline, known_number = tonumber(stored[1] or '0'), tonumber(stored[2] or '0')
  if timeline > known_timeline or (timeline == known_timeline and number > known_number) then
    redis.call('HSET', keys[1], 'timeline', text_of(timeline), 'number', text_of(number), 'value', args[3])
  end
  return {'OK', text_of(known_timeline), text_of(known_number), stored[3] or ''}
end

-- tollkeeper_version  -> OK version. Lets the ledger see whether the library is the one that it brings.
local function tollkeeper_version() return {'OK', VERSION} end

redis.register_function('pool_open', pool_open)
redis.register_function('pool_extend', pool_extend)
redis.register_function('pool_close', pool_close)
redis.register_function('lease_grant', lease_grant)
redis.register_function('values_grant', values_grant)
redis.register_function('values_return', values_return)
redis.register_function('witness_show', witness_show)
redis.register_function{function_name = 'tollkeeper_version', callback = tollkeeper_version, flags = {'no-writes'}}
