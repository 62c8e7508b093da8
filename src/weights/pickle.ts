/**
 * A reader of Python pickles (protocols 2 to 5) that runs nothing: it knows the opcodes that `torch.save` writes for tensors in
 * dictionaries and lists, and a handful of names (see GLOBALS) that it gives meaning to itself. Every other name is refused with
 * that name, so a pickle that would call `os.system` ends there. Work is linear in the file; nothing nests by recursion.
 */

import { SepconvError } from '../errors.js'

/** What a persistent id of `torch.save` names: a one-dimensional storage of elements. */
export interface Storage {
  readonly kind: 'storage'
  readonly key: string
  readonly dtype: StorageType
  readonly elements: number
}

/** A strided view of a storage. */
export interface TensorView {
  readonly kind: 'tensor'
  readonly storage: Storage
  readonly offset: number
  readonly shape: readonly number[]
  readonly strides: readonly number[]
}

export type StorageType = 'F64' | 'F32' | 'F16' | 'BF16' | 'I64' | 'I32' | 'I16' | 'I8' | 'U8' | 'BOOL'

/** Bytes per element. */
export const STORAGE_BYTES: Readonly<Record<StorageType, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
}

const STORAGES: Readonly<Record<string, StorageType>> = {
  DoubleStorage: 'F64',
  FloatStorage: 'F32',
  HalfStorage: 'F16',
  BFloat16Storage: 'BF16',
  LongStorage: 'I64',
  IntStorage: 'I32',
  ShortStorage: 'I16',
  CharStorage: 'I8',
  ByteStorage: 'U8',
  BoolStorage: 'BOOL',
}

type GlobalName = 'dictionary' | 'tensor' | 'tensorV1' | 'parameter' | 'size' | 'device'

/** The names that mean something; what they make is described here and never looked up. */
const GLOBALS: Readonly<Record<string, GlobalName>> = {
  'collections OrderedDict': 'dictionary',
  'torch._utils _rebuild_tensor_v2': 'tensor',
  'torch._utils _rebuild_tensor': 'tensorV1',
  'torch._utils _rebuild_parameter': 'parameter',
  'torch Size': 'size',
  'torch device': 'device',
}

type Global = { readonly kind: 'global'; readonly means: GlobalName } | { readonly kind: 'storageType'; readonly dtype: StorageType }

export type Pickled =
  | Map<Pickled, Pickled>
  | Pickled[]
  | string
  | number
  | bigint
  | boolean
  | null
  | Uint8Array
  | Storage
  | TensorView
  | Global

const MARK = Symbol('mark')
type Slot = Pickled | typeof MARK

/** More than any model needs; a pickle cannot make the reader hold more objects than it has bytes anyway. */
const MAX_RANK = 16

export interface Unpickled {
  readonly value: Pickled
  /** The position after STOP. */
  readonly end: number
  /** Every storage that was named, by its key. */
  readonly storages: ReadonlyMap<string, Storage>
}

/**
 * Reads one pickle that starts at `start`.
 * @throws ERR_FORMAT for names that are not allowed, unknown opcodes, and whatever is not well formed.
 */
export function readPickle(bytes: Uint8Array, subject: string, start = 0): Unpickled {
  return new Unpickler(bytes, subject, start).run()
}

class Unpickler {
  readonly #view: DataView
  readonly #stack: Slot[] = []
  readonly #memo = new Map<number, Pickled>()
  readonly #storages = new Map<string, Storage>()
  #at: number

  constructor(
    private readonly bytes: Uint8Array,
    private readonly subject: string,
    start: number,
  ) {
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
    this.#at = start
  }

  run(): Unpickled {
    for (;;) {
      const opcode = this.#u8()
      if (opcode === 0x2e) return { value: this.#pop(), end: this.#at, storages: this.#storages } // STOP
      this.#step(opcode)
    }
  }

  #step(opcode: number): void {
    switch (opcode) {
      case 0x80: // PROTO
        if (this.#u8() > 5) this.#fail('a protocol beyond 5')
        break
      case 0x95: // FRAME
        this.#take(8)
        break
      case 0x28: // MARK
        this.#stack.push(MARK)
        break
      case 0x4e: // NONE
        this.#push(null)
        break
      case 0x88: // NEWTRUE
        this.#push(true)
        break
      case 0x89: // NEWFALSE
        this.#push(false)
        break
      case 0x4a: // BININT
        this.#push(this.#view.getInt32(this.#take(4), true))
        break
      case 0x4b: // BININT1
        this.#push(this.#u8())
        break
      case 0x4d: // BININT2
        this.#push(this.#view.getUint16(this.#take(2), true))
        break
      case 0x8a: // LONG1
        this.#push(this.#long(this.#u8()))
        break
      case 0x47: // BINFLOAT
        this.#push(this.#view.getFloat64(this.#take(8), false))
        break
      case 0x58: // BINUNICODE
        this.#push(this.#text(this.#u32()))
        break
      case 0x8c: // SHORT_BINUNICODE
        this.#push(this.#text(this.#u8()))
        break
      case 0x8d: // BINUNICODE8
        this.#push(this.#text(this.#u64()))
        break
      case 0x54: // BINSTRING, written by Python 2
        this.#push(this.#text(this.#u32()))
        break
      case 0x55: // SHORT_BINSTRING
        this.#push(this.#text(this.#u8()))
        break
      case 0x42: // BINBYTES
        this.#push(this.#slice(this.#u32()))
        break
      case 0x43: // SHORT_BINBYTES
        this.#push(this.#slice(this.#u8()))
        break
      case 0x29: // EMPTY_TUPLE
      case 0x5d: // EMPTY_LIST
        this.#push([])
        break
      case 0x7d: // EMPTY_DICT
        this.#push(new Map())
        break
      case 0x85: // TUPLE1
      case 0x86: // TUPLE2
      case 0x87: // TUPLE3
        this.#push(Array.from({ length: opcode - 0x84 }, () => this.#pop()).reverse())
        break
      case 0x74: // TUPLE
      case 0x6c: // LIST
        this.#push(this.#toMark())
        break
      case 0x61: // APPEND
        this.#append([this.#pop()])
        break
      case 0x65: // APPENDS
        this.#append(this.#toMark())
        break
      case 0x73: // SETITEM
        this.#set([this.#pop(), this.#pop()].reverse())
        break
      case 0x75: // SETITEMS
        this.#set(this.#toMark())
        break
      case 0x30: // POP
        if (this.#stack.pop() === undefined) this.#fail('POP of an empty stack')
        break
      case 0x71: // BINPUT
        this.#memo.set(this.#u8(), this.#top())
        break
      case 0x72: // LONG_BINPUT
        this.#memo.set(this.#u32(), this.#top())
        break
      case 0x94: // MEMOIZE
        this.#memo.set(this.#memo.size, this.#top())
        break
      case 0x68: // BINGET
        this.#recall(this.#u8())
        break
      case 0x6a: // LONG_BINGET
        this.#recall(this.#u32())
        break
      case 0x63: // GLOBAL
        this.#push(this.#global(this.#line(), this.#line()))
        break
      case 0x93: {
        // STACK_GLOBAL
        const [name, module] = [this.#pop(), this.#pop()]
        if (typeof name !== 'string' || typeof module !== 'string') throw this.#fail('a global whose name is no text')
        this.#push(this.#global(module, name))
        break
      }
      case 0x51: // BINPERSID
        this.#push(this.#persistent(this.#pop()))
        break
      case 0x52: {
        // REDUCE
        const [args, callee] = [this.#pop(), this.#pop()]
        this.#push(this.#reduce(callee, args))
        break
      }
      case 0x62: {
        // BUILD: the state of an OrderedDict that carries attributes (`_metadata`) says nothing about tensors.
        this.#pop()
        if (!(this.#top() instanceof Map)) this.#fail('BUILD of something that is no dictionary')
        break
      }
      default:
        this.#fail(`opcode 0x${opcode.toString(16).padStart(2, '0')} has no place in a file of tensors`)
    }
  }

  #global(module: string, name: string): Global {
    const full = `${module} ${name}`
    if (Object.hasOwn(GLOBALS, full)) return { kind: 'global', means: GLOBALS[full]! }
    if ((module === 'torch' || module === 'torch.cuda') && Object.hasOwn(STORAGES, name))
      return { kind: 'storageType', dtype: STORAGES[name]! }
    throw new SepconvError('ERR_FORMAT', `${this.subject}: the pickle names ${printable(`${module}.${name}`)}, which is no tensor`, {
      subject: `${module}.${name}`,
      hint: 'Nothing was executed. If you trust the file, load it in Python and save its state_dict() alone, best as safetensors',
    })
  }

  #reduce(callee: Pickled, args: Pickled): Pickled {
    if (!isGlobal(callee) || callee.kind !== 'global' || !Array.isArray(args)) return this.#fail('a call of something that is no function')
    switch (callee.means) {
      case 'dictionary':
        return this.#dictionary(args)
      case 'size':
        return args.length === 1 && Array.isArray(args[0]) ? args[0] : this.#fail('torch.Size of something that is no list')
      case 'device':
        return String(args[0])
      case 'parameter':
        return isTensor(args[0]) ? args[0] : this.#fail('a parameter that is no tensor')
      case 'tensor':
      case 'tensorV1':
        return this.#tensor(args)
    }
  }

  #dictionary(args: readonly Pickled[]): Pickled {
    const map = new Map<Pickled, Pickled>()
    const [pairs] = args
    if (pairs === undefined) return map
    if (!Array.isArray(pairs)) return this.#fail('an OrderedDict of something that is no list')
    for (const pair of pairs) {
      if (!Array.isArray(pair) || pair.length !== 2) return this.#fail('an OrderedDict entry that is no pair')
      map.set(pair[0]!, pair[1]!)
    }
    return map
  }

  #tensor([storage, offset, shape, strides]: readonly Pickled[]): TensorView {
    if (!isStorage(storage)) return this.#fail('a tensor without a storage')
    const sizes = this.#sizes(shape, 'shape')
    const steps = this.#sizes(strides, 'stride')
    if (typeof offset !== 'number' || !Number.isSafeInteger(offset) || offset < 0)
      return this.#fail('a tensor whose offset is no whole number')
    if (sizes.length !== steps.length) return this.#fail(`a tensor of shape [${sizes}] with strides [${steps}]`)
    const empty = sizes.includes(0)
    const last = offset + sizes.reduce((sum, size, axis) => sum + (size - 1) * steps[axis]!, 0)
    const count = sizes.reduce((product, size) => product * size, 1)
    if (!empty && (last >= storage.elements || count > storage.elements))
      return this.#fail(
        `a tensor of shape [${sizes}], strides [${steps}] and offset ${offset} reaches beyond its storage of ${storage.elements} elements`,
      )
    return { kind: 'tensor', storage, offset, shape: sizes, strides: steps }
  }

  #sizes(value: Pickled | undefined, what: string): number[] {
    if (!Array.isArray(value) || value.length > MAX_RANK || !value.every((size) => Number.isSafeInteger(size) && (size as number) >= 0))
      return this.#fail(`a tensor whose ${what} is no list of up to ${MAX_RANK} whole numbers`)
    return value as number[]
  }

  /** ('storage', type, key, location, elements) and, in the older format, a view, which PyTorch has not written since 2017. */
  #persistent(id: Pickled): Storage {
    if (!Array.isArray(id) || id[0] !== 'storage') return this.#fail('a persistent id that is no storage')
    const [, type, key, , elements, view] = id
    if (type === undefined || !isGlobal(type) || type.kind !== 'storageType') return this.#fail('a storage without a type')
    if (typeof key !== 'string' || typeof elements !== 'number' || !Number.isSafeInteger(elements) || elements < 0)
      return this.#fail('a storage without a key or size')
    if (view !== undefined && view !== null) return this.#fail('a view of another storage')
    const known = this.#storages.get(key)
    if (known && (known.dtype !== type.dtype || known.elements !== elements)) return this.#fail('a storage with two types or sizes')
    const storage: Storage = known ?? { kind: 'storage', key, dtype: type.dtype, elements }
    this.#storages.set(key, storage)
    return storage
  }

  #append(items: readonly Pickled[]): void {
    const list = this.#top()
    if (!Array.isArray(list)) throw this.#fail('APPEND to something that is no list')
    for (const item of items) list.push(item)
  }

  #set(items: readonly Pickled[]): void {
    const map = this.#top()
    if (!(map instanceof Map) || items.length % 2 === 1) throw this.#fail('SETITEMS on something that is no dictionary')
    for (let i = 0; i < items.length; i += 2) map.set(items[i]!, items[i + 1]!)
  }

  #push(value: Pickled): void {
    this.#stack.push(value)
  }
  #pop(): Pickled {
    const value = this.#stack.pop()
    return value === undefined || value === MARK ? this.#fail('a value is missing on the stack') : value
  }
  #top(): Pickled {
    const value = this.#stack.at(-1)
    return value === undefined || value === MARK ? this.#fail('a value is missing on the stack') : value
  }
  #toMark(): Pickled[] {
    const at = this.#stack.lastIndexOf(MARK)
    if (at < 0) return this.#fail('a mark is missing on the stack')
    const items = this.#stack.splice(at + 1) as Pickled[]
    this.#stack.pop()
    return items
  }
  #recall(index: number): void {
    const value = this.#memo.get(index)
    if (value === undefined) this.#fail(`memo entry ${index} does not exist`)
    else this.#push(value)
  }

  #u8(): number {
    return this.bytes[this.#take(1)]!
  }
  #u32(): number {
    return this.#view.getUint32(this.#take(4), true)
  }
  #u64(): number {
    return Number(this.#view.getBigUint64(this.#take(8), true))
  }
  #long(length: number): number | bigint {
    const bytes = this.#slice(length)
    let value = 0n
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[i]!)
    if (length > 0 && bytes[length - 1]! >= 128) value -= 1n << BigInt(8 * length)
    return Number.isSafeInteger(Number(value)) ? Number(value) : value
  }
  #text(length: number): string {
    return Buffer.from(this.#slice(length)).toString('utf8')
  }
  #line(): string {
    const end = this.bytes.indexOf(0x0a, this.#at)
    if (end < 0 || end - this.#at > 1000) return this.#fail('a name that does not end')
    const text = this.#text(end - this.#at)
    this.#at++
    return text
  }
  #slice(length: number): Uint8Array {
    const from = this.#take(length)
    return this.bytes.subarray(from, from + length)
  }
  #take(length: number): number {
    const from = this.#at
    if (length > this.bytes.length - from) this.#fail('the pickle ends in mid-value')
    this.#at += length
    return from
  }

  #fail(problem: string): never {
    throw new SepconvError('ERR_FORMAT', `${this.subject}: pickle, byte ${this.#at}: ${problem}`, { subject: this.subject })
  }
}

const printable = (text: string): string => JSON.stringify(text.length > 80 ? `${text.slice(0, 77)}...` : text).slice(1, -1)
const ofKind = (value: unknown): string => String((value as { kind?: string } | null)?.kind)
const isStorage = (value: Pickled | undefined): value is Storage => ofKind(value) === 'storage'
const isGlobal = (value: Pickled): value is Global => ofKind(value) === 'global' || ofKind(value) === 'storageType'
export const isTensor = (value: Pickled | undefined): value is TensorView => ofKind(value) === 'tensor'
