#!lua name=tollkeeper
-- What pools and token buckets do, atomically, inside Redis or Valkey. See docs/adr (two-level escrow) and README.md here.
--
-- Every argument is text, every reply a flat list of texts whose first element is OK or ERR. An ERR reply changed
-- nothing (but a pool whose counters are used up is closed by it). Clients call with retries switched off:
-- what may be repeated is the protocol's decision, not a library's.
-- Notices are published before anything is written, so that a refused publish leaves nothing half done.
-- All keys and the channel of one call share a hash tag.

local VERSION = '3'
local UNITS_MAX = 9007199254740991 -- 2^53 - 1: Lua numbers are doubles, whole numbers up to here are exact
local SPEED_MILLI_MAX = 1000000000
local SLICE_US = 200000 -- a slice of a bucket is over this long after it was asked for, in real time
local SLOT_US = 25000 -- ends of slices are rounded up to this, so that a bucket remembers few of them
local BUCKET_HOLDERS_MAX = 128 -- more answers than this are thinned out
local EXPIRE_MARGIN_S = 3600
local EXPIRE_AT_S_MAX = 253402300799 -- the end of the year 9999
local TTL_MS_MAX = 315360000000 -- ten years

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
  local give = share_of(free, pool.total, ask.need, ask.want, math.max(ask.holder_count, holders))
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
  local wanted = next_wanted(pool.wanted, free, ask.need, give, channel)
  pool.granted, pool.seq, holder.granted = pool.granted + give, pool.seq + 1, holder.granted + give
  redis.call('HSET', keys[1], 'granted', text_of(pool.granted), 'returned', text_of(pool.returned),
    'seq', text_of(pool.seq), 'wanted', text_of(wanted))
  redis.call('HSET', keys[2], name, table.concat({text_of(ask.request_seq), text_of(holder.granted),
    text_of(ask.returned_cum), text_of(give), text_of(ask.consumed_cum), text_of(ask.over_cum)}, ':'))
  if known == 0 then redis.call('EXPIREAT', keys[2], pool.expire_at) end
  return {'OK', text_of(give), text_of(holder.granted), text_of(pool.seq), text_of(free), pool.final,
    text_of(pool.total), text_of(holders)}
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
  local stored, refusal = live(keys[1], generation,
    'total', 'granted', 'returned', 'seq', 'final', 'closed', 'wanted', 'expire_at')
  if not stored then return refusal end
  local pool = {total = tonumber(stored[3]), granted = tonumber(stored[4]), returned = tonumber(stored[5]),
    seq = tonumber(stored[6]), final = stored[7], closed = stored[8] == '1', wanted = tonumber(stored[9]),
    expire_at = stored[10]}
  if pool.seq < witness_seq then return {'ERR', 'ROLLBACK', text_of(pool.seq)} end
  local holder = read_holder(keys[2], args[2])
  if holder.known and ask.request_seq == holder.seq then return grant_again(keys, pool, holder, ask.need, args[11]) end
  if pool.closed then return {'ERR', 'CLOSED'} end
  if ask.request_seq ~= holder.seq + 1 then return {'ERR', 'SEQ', text_of(holder.seq)} end
  if ask.returned_cum < holder.returned or ask.consumed_cum + ask.returned_cum > holder.granted then
    return {'ERR', 'RETURN_RANGE'}
  end
  return grant_now(keys, args[2], pool, holder, ask, args[11])
end

-- Token buckets ------------------------------------------------------------------------------------------------------
-- marker: generation fence first opened_us speed at real_us ledger_us ledger_rest. It carries the shard's clocks:
--   at = Redis TIME when last looked; real_us = real time since then added up, never backward; ledger_us + ledger_rest/1000
--   = ledger time, real time x speed. A backward jump of Redis' clock only moves `at`.
-- bucket: generation level credit rate interval ledger_us real_us ahead, and h:<holder> = request_seq:give:level:real_us.
--   Tokens are level + credit / interval. ahead = end:units;... of slices not yet over, by real_us.

-- Reads the marker and moves its clocks to now, in memory.
local function live_marker(key, generation)
  local stored, refusal = live(key, generation, 'first', 'opened_us', 'speed', 'at', 'real_us', 'ledger_us', 'ledger_rest')
  if not stored then return nil, refusal end
  local marker = {first = tonumber(stored[3]), opened_us = tonumber(stored[4]), speed = tonumber(stored[5]),
    real_us = tonumber(stored[7]), ledger_us = tonumber(stored[8]), ledger_rest = tonumber(stored[9])}
  local now_us = redis_now_us()
  local elapsed_us = math.max(0, now_us - tonumber(stored[6]))
  if marker.speed > 0 then
    -- Longer ones would leave exact arithmetic; 104 days at speed 1.
    elapsed_us = math.min(elapsed_us, math.floor((UNITS_MAX - 999) / marker.speed))
  end
  local moved_milli = elapsed_us * marker.speed + marker.ledger_rest
  local moved_us = math.floor(moved_milli / 1000)
  marker.at, marker.real_us = now_us, marker.real_us + elapsed_us
  marker.ledger_us = math.min(UNITS_MAX, marker.ledger_us + moved_us)
  marker.ledger_rest = moved_milli - moved_us * 1000
  return marker
end

local function write_marker(key, marker)
  redis.call('HSET', key, 'first', marker.first, 'opened_us', text_of(marker.opened_us), 'speed', text_of(marker.speed),
    'at', text_of(marker.at), 'real_us', text_of(marker.real_us), 'ledger_us', text_of(marker.ledger_us),
    'ledger_rest', text_of(marker.ledger_rest))
end

-- bucket_open  KEYS marker  ARGV generation opened_at_us speed_milli first channel
-- opened_at_us is ledger time now. first = 1 only for the first generation ever: a bucket that is not there is then full.
local function bucket_open(keys, args)
  local generation, opened_us, speed = units(args[1]), units(args[2]), units(args[3])
  local first = flag(args[4])
  if not (generation and opened_us and speed and speed <= SPEED_MILLI_MAX and first and args[5]) then
    return {'ERR', 'RANGE'}
  end
  local stored = redis.call('HGET', keys[1], 'generation')
  if stored and tonumber(stored) >= generation then return {'ERR', 'OLD_GENERATION', stored} end
  redis.call('SPUBLISH', args[5], 'UNITS')
  redis.call('DEL', keys[1])
  redis.call('HSET', keys[1], 'generation', text_of(generation), 'fence', fence())
  write_marker(keys[1], {first = first, opened_us = opened_us, speed = speed, at = redis_now_us(), real_us = 0,
    ledger_us = opened_us, ledger_rest = 0})
  return {'OK'}
end

-- bucket_speed  KEYS marker  ARGV generation speed_milli [ledger_now_us]
-- Sets the speed from now on; with the third argument also steps ledger time forward, never back.
local function bucket_speed(keys, args)
  local generation, speed = units(args[1]), units(args[2])
  local ledger_now_us = args[3] and units(args[3]) or 0
  if not (generation and speed and speed <= SPEED_MILLI_MAX and ledger_now_us) then return {'ERR', 'RANGE'} end
  local marker, refusal = live_marker(keys[1], generation)
  if not marker then return refusal end
  if speed < 1000 and marker.speed >= 1000 then
    -- Bucket keys expire by real time, so from here a missing one may not have been full.
    marker.first, marker.opened_us = 0, marker.ledger_us
  end
  marker.speed, marker.ledger_us = speed, math.max(marker.ledger_us, ledger_now_us)
  write_marker(keys[1], marker)
  return {'OK'}
end

-- Lets `elapsed_us` of ledger time flow into a bucket, up to `cap`.
local function refill(bucket, elapsed_us, cap)
  if bucket.level >= cap then
    bucket.level, bucket.credit = cap, 0
    return
  end
  local whole, rest = muldiv(elapsed_us, bucket.rate, bucket.interval)
  if rest >= bucket.interval - bucket.credit then
    whole, rest = whole + 1, rest - (bucket.interval - bucket.credit)
  else
    rest = rest + bucket.credit
  end
  if whole >= cap - bucket.level then
    bucket.level, bucket.credit = cap, 0
  else
    bucket.level, bucket.credit = bucket.level + whole, rest
  end
end

-- Answers how much ledger time must flow until `need` is there; 2^53 - 1 = never.
local function time_until(bucket, need)
  local missing = need - bucket.level
  if missing <= 0 then return 0 end
  if bucket.rate == 0 then return UNITS_MAX end
  local whole, rest = muldiv(missing, bucket.interval, bucket.rate)
  if whole == UNITS_MAX then return UNITS_MAX end
  return math.max(0, whole + math.ceil((rest - bucket.credit) / bucket.rate))
end

local function cap_of(bucket) return math.max(0, bucket.burst - bucket.ahead_units) end

-- Moves a bucket to now. While a slice was not over the level was capped lower, so time flows from end to end.
local function advance(bucket, marker)
  local span_real_us, span_ledger_us = marker.real_us - bucket.real_us, marker.ledger_us - bucket.ledger_us
  local flowed_us, rest = 0, {}
  for _, slice in ipairs(bucket.ahead) do
    if slice.ends_us <= marker.real_us then
      local until_us = span_ledger_us
      if span_real_us > 0 then
        until_us = muldiv(math.max(0, slice.ends_us - bucket.real_us), span_ledger_us, span_real_us)
      end
      refill(bucket, math.max(0, until_us - flowed_us), cap_of(bucket))
      flowed_us, bucket.ahead_units = math.max(flowed_us, until_us), bucket.ahead_units - slice.units
    else
      rest[#rest + 1] = slice
    end
  end
  refill(bucket, math.max(0, span_ledger_us - flowed_us), cap_of(bucket))
  bucket.ahead, bucket.real_us, bucket.ledger_us = rest, marker.real_us, marker.ledger_us
end

-- Answers the ledger time until `need` would be there if nobody else asked: the refill, and the ends of slices.
local function retry_after_us(bucket, marker, need)
  if need > bucket.burst then return UNITS_MAX end
  local trial = {level = bucket.level, credit = bucket.credit, rate = bucket.rate, interval = bucket.interval,
    burst = bucket.burst, ahead_units = bucket.ahead_units}
  local waited_us = 0
  for _, slice in ipairs(bucket.ahead) do
    local horizon_us = math.max(waited_us, muldiv(slice.ends_us - marker.real_us, marker.speed, 1000) + 1)
    if need <= cap_of(trial) then
      local wait_us = time_until(trial, need)
      if waited_us + wait_us <= horizon_us then return waited_us + wait_us end
    end
    refill(trial, horizon_us - waited_us, cap_of(trial))
    waited_us, trial.ahead_units = horizon_us, trial.ahead_units - slice.units
  end
  return math.min(UNITS_MAX, waited_us + time_until(trial, need))
end

local function read_bucket(key, generation, marker, rate, interval, burst)
  local stored = redis.call('HMGET', key, 'generation', 'level', 'credit', 'rate', 'interval', 'ledger_us', 'real_us', 'ahead')
  if not stored[1] or tonumber(stored[1]) ~= generation then
    if stored[1] then redis.call('DEL', key) end
    local bucket = {level = burst, credit = 0, rate = rate, interval = interval, burst = burst, ahead = {}, ahead_units = 0,
      real_us = marker.real_us, ledger_us = marker.ledger_us}
    if marker.first == 0 then
      bucket.level = 0
      refill(bucket, math.max(0, marker.ledger_us - marker.opened_us), burst)
    end
    return bucket
  end
  local bucket = {level = tonumber(stored[2]), credit = tonumber(stored[3]), rate = tonumber(stored[4]),
    interval = tonumber(stored[5]), burst = burst, ledger_us = tonumber(stored[6]), real_us = tonumber(stored[7]),
    ahead = {}, ahead_units = 0}
  for ends_us, count in string.gmatch(stored[8], '(%d+):(%d+)') do
    bucket.ahead[#bucket.ahead + 1] = {ends_us = tonumber(ends_us), units = tonumber(count)}
    bucket.ahead_units = bucket.ahead_units + tonumber(count)
  end
  -- What has flowed until now flowed at the rate that was in force.
  advance(bucket, marker)
  if bucket.interval ~= interval then bucket.credit = 0 end
  bucket.rate, bucket.interval = rate, interval
  return bucket
end

local function lend_ahead(bucket, marker, count)
  if count == 0 then return end
  local ends_us = math.ceil((marker.real_us + SLICE_US) / SLOT_US) * SLOT_US
  local last = bucket.ahead[#bucket.ahead]
  if last and last.ends_us == ends_us then
    last.units = last.units + count
  else
    bucket.ahead[#bucket.ahead + 1] = {ends_us = ends_us, units = count}
  end
  bucket.ahead_units = bucket.ahead_units + count
end

local function write_bucket(key, generation, bucket, speed)
  local slices = {}
  for i, slice in ipairs(bucket.ahead) do slices[i] = text_of(slice.ends_us) .. ':' .. text_of(slice.units) end
  redis.call('HSET', key, 'generation', text_of(generation), 'level', text_of(bucket.level),
    'credit', text_of(bucket.credit), 'rate', text_of(bucket.rate), 'interval', text_of(bucket.interval),
    'ledger_us', text_of(bucket.ledger_us), 'real_us', text_of(bucket.real_us), 'ahead', table.concat(slices, ';'))
  -- It may go when it is full. Faster than real time it is full sooner, slower than real time it stays.
  local ttl_ms = math.ceil(time_until(bucket, bucket.burst) / 1000) + 1000
  if speed >= 1000 and ttl_ms <= TTL_MS_MAX then
    redis.call('PEXPIRE', key, text_of(ttl_ms))
  else
    redis.call('PERSIST', key)
  end
end

-- Forgets answers whose slices are over, where a bucket has collected many.
local function thin_out(key, real_us)
  if redis.call('HLEN', key) <= BUCKET_HOLDERS_MAX then return end
  local fields, over = redis.call('HGETALL', key), {}
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 2) == 'h:' then
      local given_us = tonumber(string.match(fields[i + 1], ':(%d+)$'))
      if real_us - given_us > SLICE_US then over[#over + 1] = fields[i] end
    end
  end
  for first = 1, #over, 1000 do
    redis.call('HDEL', key, unpack(over, first, math.min(first + 999, #over)))
  end
end

-- bucket_take  KEYS marker bucket  ARGV generation holder_hex request_seq need want rate_units interval_us burst
-- Gives need or nothing, and beyond need up to want, half of what is there at most. Units are for a slice that is over
-- SLICE_US of real time after the request was first sent. A repeat of the last request_seq while that slice lasts repeats
-- what it gave; afterwards, or where nothing was given, it is decided anew. A smaller request_seq is an error.
-- Answers OK give level_after retry_after_us; the last is 0 where units were given, 2^53 - 1 where no waiting helps.
local function bucket_take(keys, args)
  local generation, request_seq, need, want = units(args[1]), units(args[3]), units(args[4]), units(args[5])
  local rate, interval, burst = units(args[6]), units(args[7]), units(args[8])
  if not (generation and holder_name(args[2]) and request_seq and request_seq > 0 and need and want and rate and interval
      and interval > 0 and burst) then
    return {'ERR', 'RANGE'}
  end
  local marker, refusal = live_marker(keys[1], generation)
  if not marker then return refusal end
  local bucket = read_bucket(keys[2], generation, marker, rate, interval, burst)
  local field = 'h:' .. args[2]
  local answer = redis.call('HGET', keys[2], field)
  if answer then
    local seq, give, level, given_us = string.match(answer, '^(%d+):(%d+):(%d+):(%d+)$')
    if request_seq < tonumber(seq) then return {'ERR', 'SEQ', seq} end
    local lasts = marker.real_us - tonumber(given_us) < SLICE_US
    if request_seq == tonumber(seq) and give ~= '0' and lasts then return {'OK', give, level, '0'} end
  else
    thin_out(keys[2], marker.real_us)
  end
  local give, retry_us = 0, 0
  if bucket.level >= need then
    local ahead = math.max(0, math.min(want - need, math.floor((bucket.level - need) / 2)))
    give = need + ahead
    bucket.level = bucket.level - give
    lend_ahead(bucket, marker, ahead)
  else
    retry_us = retry_after_us(bucket, marker, need)
  end
  write_marker(keys[1], marker)
  write_bucket(keys[2], generation, bucket, marker.speed)
  redis.call('HSET', keys[2], field, table.concat({text_of(request_seq), text_of(give), text_of(bucket.level),
    text_of(marker.real_us)}, ':'))
  return {'OK', text_of(give), text_of(bucket.level), text_of(retry_us)}
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
redis.register_function('bucket_open', bucket_open)
redis.register_function('bucket_speed', bucket_speed)
redis.register_function('bucket_take', bucket_take)
redis.register_function('witness_show', witness_show)
redis.register_function{function_name = 'tollkeeper_version', callback = tollkeeper_version, flags = {'no-writes'}}
