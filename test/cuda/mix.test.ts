/** Reading inner loops out of PTX and machine code, without a compiler. */

import { expect, it } from 'vitest'

// A plain script: no types.
const { parsePtx, parseSass, workLoop } = await import(new URL('../../scripts/instruction-mix.mjs', import.meta.url).href)

const ptx = `
.visible .entry kernel(
$L__BB0_1:
	ld.shared.v4.f32 	{%f1, %f2, %f3, %f4}, [%r1];
$L__BB0_2:
	fma.rn.f32 	%f5, %f1, %f2, %f5;
	mov.f32 	%f6, %f5;
	ld.shared.f32 	%f7, [%r2];
	@%p1 bra 	$L__BB0_2;
	@%p2 bra 	$L__BB0_1;
	ret;
`
const sass = `
		Function : kernel
        /*0000*/                   LDS.128 R4, [R2] ;
        /*0010*/                   FFMA R1, R4, R5, R1 ;
        /*0020*/              @P0 BRA 0x10 ;
`

it('counts the innermost loop, copies between registers left out', () => {
  expect(workLoop(parsePtx(ptx).get('kernel'), 'ptx')).toEqual({ counts: [1, 0, 1, 0, 0, 0, 0], total: 3 })
  expect(workLoop(parseSass(sass).get('kernel'), 'sass')).toEqual({ counts: [1, 0, 0, 0, 0, 0, 0], total: 2 })
})
