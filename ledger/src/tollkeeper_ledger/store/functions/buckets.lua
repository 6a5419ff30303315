-- Token buckets: appended to tollkeeper.lua, whose numbers and fence it uses.

local SPEED_MILLI_MAX = 1000000000
local SLICE_US = 200000 -- a slice of a bucket is over this long after it was asked for, in real time
local SLOT_US = 25000 -- ends of slices are rounded up to this, so that a bucket remembers few of them
local BUCKET_HOLDERS_MAX = 128 -- more answers than this are thinned out
local PEAKS_MAX = 8 -- so many low points of the room above a bucket's level are told apart
local CLOCK_MARGIN_US = 1000000 -- the shard's clock may be this far ahead of a caller's, in real and in ledger time
local SHARES_PPM = 20000 -- of the rate, for all holders that are cut off together: 2 %
local SHARE_US = 600000000 -- a holder uses its share for so long without hearing from the shard
local SHARE_FORGET_US = 660000000 -- after so long the shard gives it to others
local TTL_MS_MAX = 315360000000 -- ten years

-- marker: generation fence first opened_us speed at real_us ledger_us ledger_rest. It carries the shard's clocks:
--   at = Redis TIME when last looked; real_us = real time since then added up, never backward; ledger_us + ledger_rest/1000
--   = ledger time, real time x speed. A backward jump of Redis' clock only moves `at`.
--   s:<holder> = request_seq:ppm:real_us, the holder's standing share; their sum never passes SHARES_PPM.
-- bucket: generation level credit rate interval ledger_us real_us ahead op peaks, and
--   h:<holder> = request_seq:give:level:op:open:give_seq:gave:real_us.
--   Tokens are level + credit / interval. ahead = end:units;... of slices not yet over, by real_us.
--   op counts calls and never repeats in a generation. open = units taken and not given back.
--   peaks = op:room;... the least room there was above the level since each of these calls (burst - ahead - level).

-- Reads the marker and moves its clocks to now, in memory. Where the caller's ledger time is known they don't get further
-- ahead of it than a margin: Redis' own clock may jump forward, and time that did not pass brings no tokens.
local function live_marker(key, generation, caller_us)
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
  if caller_us and marker.speed > 0 then
    local margin_us = CLOCK_MARGIN_US + CLOCK_MARGIN_US * marker.speed / 1000
    local most_us = muldiv(math.max(0, caller_us + margin_us - marker.ledger_us), 1000, marker.speed)
    if elapsed_us > most_us + CLOCK_MARGIN_US then
      -- A jump: bucket keys may have expired by it, so from here a missing one may not have been full.
      marker.first, marker.opened_us = 0, marker.ledger_us
    end
    elapsed_us = math.min(elapsed_us, most_us)
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

-- Whole tokens that would still fit above the level.
local function room_of(bucket)
  return math.max(0, cap_of(bucket) - bucket.level - (bucket.credit > 0 and 1 or 0))
end

-- Notes how much room there is now: tokens given back later were there in the meantime only as far as they had room.
local function note_room(bucket)
  local peaks, room = bucket.peaks, room_of(bucket)
  while #peaks > 0 and peaks[#peaks].room >= room do peaks[#peaks] = nil end
  peaks[#peaks + 1] = {op = bucket.op, room = room}
  if #peaks > PEAKS_MAX then
    peaks[2].room = peaks[1].room
    table.remove(peaks, 1)
  end
end

-- What so many tokens taken at `op` and given back now are worth: had they never been taken, only so many of them would
-- still be there. Forgets that room.
local function regain(bucket, op, count)
  local peaks, worth = bucket.peaks, math.min(count, room_of(bucket))
  for _, peak in ipairs(peaks) do
    if peak.op > op then worth = math.min(worth, peak.room) end
  end
  bucket.peaks = {}
  for _, peak in ipairs(peaks) do
    local room = peak.op > op and peak.room - worth or peak.room
    while #bucket.peaks > 0 and bucket.peaks[#bucket.peaks].room >= room do bucket.peaks[#bucket.peaks] = nil end
    bucket.peaks[#bucket.peaks + 1] = {op = peak.op, room = room}
  end
  bucket.level = bucket.level + worth
  note_room(bucket)
  return worth
end

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
      note_room(bucket)
      flowed_us, bucket.ahead_units = math.max(flowed_us, until_us), bucket.ahead_units - slice.units
    else
      rest[#rest + 1] = slice
    end
  end
  refill(bucket, math.max(0, span_ledger_us - flowed_us), cap_of(bucket))
  note_room(bucket)
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
  local stored = redis.call('HMGET', key, 'generation', 'level', 'credit', 'rate', 'interval', 'ledger_us', 'real_us', 'ahead',
    'op', 'peaks')
  if not stored[1] or tonumber(stored[1]) ~= generation then
    if stored[1] then redis.call('DEL', key) end
    local bucket = {level = burst, credit = 0, rate = rate, interval = interval, burst = burst, ahead = {}, ahead_units = 0,
      real_us = marker.real_us, ledger_us = marker.ledger_us, op = marker.real_us + 1, peaks = {}}
    if marker.first == 0 then
      bucket.level = 0
      refill(bucket, math.max(0, marker.ledger_us - marker.opened_us), burst)
    end
    bucket.peaks[1] = {op = bucket.op, room = 0}
    return bucket
  end
  local bucket = {level = tonumber(stored[2]), credit = tonumber(stored[3]), rate = tonumber(stored[4]),
    interval = tonumber(stored[5]), burst = burst, ledger_us = tonumber(stored[6]), real_us = tonumber(stored[7]),
    ahead = {}, ahead_units = 0, op = math.max(tonumber(stored[9]), marker.real_us) + 1, peaks = {}}
  for op, room in string.gmatch(stored[10], '(%d+):(%d+)') do
    bucket.peaks[#bucket.peaks + 1] = {op = tonumber(op), room = tonumber(room)}
  end
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
  local slices, peaks = {}, {}
  for i, slice in ipairs(bucket.ahead) do slices[i] = text_of(slice.ends_us) .. ':' .. text_of(slice.units) end
  for i, peak in ipairs(bucket.peaks) do peaks[i] = text_of(peak.op) .. ':' .. text_of(peak.room) end
  redis.call('HSET', key, 'generation', text_of(generation), 'level', text_of(bucket.level),
    'credit', text_of(bucket.credit), 'rate', text_of(bucket.rate), 'interval', text_of(bucket.interval),
    'ledger_us', text_of(bucket.ledger_us), 'real_us', text_of(bucket.real_us), 'ahead', table.concat(slices, ';'),
    'op', text_of(bucket.op), 'peaks', table.concat(peaks, ';'))
  -- It may go when it is full. Faster than real time it is full sooner, slower than real time it stays.
  local ttl_ms = math.ceil(time_until(bucket, bucket.burst) / 1000) + 1000
  if speed >= 1000 and ttl_ms <= TTL_MS_MAX then
    redis.call('PEXPIRE', key, text_of(ttl_ms))
  else
    redis.call('PERSIST', key)
  end
end

-- Forgets holders whose slices are over, where a bucket has collected many.
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

local function read_taker(key, holder)
  local stored = redis.call('HGET', key, 'h:' .. holder)
  if not stored then return {known = false, seq = 0, give = 0, level = 0, op = 0, open = 0, give_seq = 0, gave = 0, real_us = 0} end
  local numbers = {}
  for number in string.gmatch(stored, '%d+') do numbers[#numbers + 1] = tonumber(number) end
  return {known = true, seq = numbers[1], give = numbers[2], level = numbers[3], op = numbers[4], open = numbers[5],
    give_seq = numbers[6], gave = numbers[7], real_us = numbers[8]}
end

local function write_taker(key, holder, taker)
  redis.call('HSET', key, 'h:' .. holder, table.concat({text_of(taker.seq), text_of(taker.give), text_of(taker.level),
    text_of(taker.op), text_of(taker.open), text_of(taker.give_seq), text_of(taker.gave), text_of(taker.real_us)}, ':'))
end

-- bucket_take  KEYS marker bucket
-- ARGV generation holder_hex request_seq need want rate_units interval_us burst ledger_now_us
-- Gives need or nothing, and beyond need up to want, half of what is there at most. Units are for a slice that is over
-- SLICE_US of real time after the request was first sent. A repeat of the last request_seq while that slice lasts repeats
-- what it gave; afterwards, or where nothing was given, it is decided anew. A smaller request_seq is an error.
-- Answers OK give level_after retry_after_us op; retry_after_us is 0 where units were given, 2^53 - 1 where no waiting
-- helps; op names the call for bucket_give.
local function bucket_take(keys, args)
  local generation, request_seq, need, want = units(args[1]), units(args[3]), units(args[4]), units(args[5])
  local rate, interval, burst, caller_us = units(args[6]), units(args[7]), units(args[8]), units(args[9])
  if not (generation and holder_name(args[2]) and request_seq and request_seq > 0 and need and want and rate and interval
      and interval > 0 and burst and caller_us) then
    return {'ERR', 'RANGE'}
  end
  local marker, refusal = live_marker(keys[1], generation, caller_us)
  if not marker then return refusal end
  local bucket = read_bucket(keys[2], generation, marker, rate, interval, burst)
  local taker = read_taker(keys[2], args[2])
  if taker.known then
    if request_seq < taker.seq then return {'ERR', 'SEQ', text_of(taker.seq)} end
    local lasts = marker.real_us - taker.real_us < SLICE_US
    if request_seq == taker.seq and taker.give > 0 and lasts then
      return {'OK', text_of(taker.give), text_of(taker.level), '0', text_of(taker.op)}
    end
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
  taker.seq, taker.give, taker.level, taker.op, taker.real_us = request_seq, give, bucket.level, bucket.op, marker.real_us
  taker.open = math.min(UNITS_MAX, taker.open + give)
  write_marker(keys[1], marker)
  write_bucket(keys[2], generation, bucket, marker.speed)
  write_taker(keys[2], args[2], taker)
  return {'OK', text_of(give), text_of(bucket.level), text_of(retry_us), text_of(bucket.op)}
end

-- bucket_give  KEYS marker bucket
-- ARGV generation holder_hex give_seq units op rate_units interval_us burst ledger_now_us
-- Takes back units that the holder took by the call named op or a later one: at most what it took and has not given back,
-- and only as far as they would still be there had they never been taken, so that nothing is minted. A repeat of the last
-- give_seq repeats its answer, a smaller one is an error. A slice lent ahead goes on lowering the level's cap until it is
-- over. Answers OK taken_back level_after.
local function bucket_give(keys, args)
  local generation, give_seq, count, op = units(args[1]), units(args[3]), units(args[4]), units(args[5])
  local rate, interval, burst, caller_us = units(args[6]), units(args[7]), units(args[8]), units(args[9])
  if not (generation and holder_name(args[2]) and give_seq and give_seq > 0 and count and op and rate and interval
      and interval > 0 and burst and caller_us) then
    return {'ERR', 'RANGE'}
  end
  local marker, refusal = live_marker(keys[1], generation, caller_us)
  if not marker then return refusal end
  local bucket = read_bucket(keys[2], generation, marker, rate, interval, burst)
  local taker = read_taker(keys[2], args[2])
  -- Who is not known took nothing that could come back, or so long ago that it has come back by itself.
  if not taker.known then return {'OK', '0', text_of(bucket.level)} end
  if give_seq < taker.give_seq then return {'ERR', 'SEQ', text_of(taker.give_seq)} end
  if give_seq > taker.give_seq then
    local most = math.min(count, taker.open)
    taker.give_seq, taker.gave = give_seq, regain(bucket, op, most)
    taker.open = taker.open - most
    write_marker(keys[1], marker)
    write_bucket(keys[2], generation, bucket, marker.speed)
    write_taker(keys[2], args[2], taker)
  end
  return {'OK', text_of(taker.gave), text_of(bucket.level)}
end

-- bucket_share  KEYS marker  ARGV generation holder_hex request_seq held_ppm ledger_now_us
-- Divides SHARES_PPM of the rate among the holders heard of within SHARE_FORGET_US: what each may use of it while it hears
-- nothing from here, for SHARE_US after it sent the request at most. held_ppm is what the caller uses until it has the
-- answer; while that is more than its part it stays counted, so that the sum holds whatever is lost. A later generation
-- gives none before shares of the one before are over. An older request_seq is an error. Answers OK ppm.
local function bucket_share(keys, args)
  local generation, request_seq, held, caller_us = units(args[1]), units(args[3]), units(args[4]), units(args[5])
  if not (generation and holder_name(args[2]) and request_seq and request_seq > 0 and held and held <= SHARES_PPM
      and caller_us) then
    return {'ERR', 'RANGE'}
  end
  local marker, refusal = live_marker(keys[1], generation, caller_us)
  if not marker then return refusal end
  write_marker(keys[1], marker)
  if marker.first == 0 and marker.real_us < SHARE_FORGET_US then return {'OK', '0'} end
  local fields, own, others, holders = redis.call('HGETALL', keys[1]), 's:' .. args[2], 0, 1
  for i = 1, #fields, 2 do
    local seq, ppm, heard_us = string.match(fields[i + 1], '^(%d+):(%d+):(%d+)$')
    if fields[i] == own then
      if request_seq <= tonumber(seq) then return {'ERR', 'SEQ', seq} end
    elseif seq and marker.real_us - tonumber(heard_us) > SHARE_FORGET_US then
      redis.call('HDEL', keys[1], fields[i])
    elseif seq then
      others, holders = others + tonumber(ppm), holders + 1
    end
  end
  local part = math.max(0, math.min(math.floor(SHARES_PPM / holders), SHARES_PPM - others))
  redis.call('HSET', keys[1], own,
    table.concat({text_of(request_seq), text_of(math.max(part, held)), text_of(marker.real_us)}, ':'))
  return {'OK', text_of(part)}
end

redis.register_function('bucket_open', bucket_open)
redis.register_function('bucket_speed', bucket_speed)
redis.register_function('bucket_take', bucket_take)
redis.register_function('bucket_give', bucket_give)
redis.register_function('bucket_share', bucket_share)
